/** A local folder for videos in the making. Workers that are killed leave theirs behind; the next ones clear them away. */
import { mkdtemp, readdir, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const PREFIX = "dream-engine-videos-";
/** No rollout takes this long: a folder untouched for so long has no owner. */
const STALE_MS = 24 * 3_600_000;

export async function createWorkDir(parent = tmpdir(), now = Date.now()): Promise<string> {
  for (const name of await readdir(parent)) {
    if (!name.startsWith(PREFIX)) continue;
    const dir = join(parent, name);
    try {
      const { mtimeMs } = await stat(dir);
      if (now - mtimeMs > STALE_MS) await rm(dir, { recursive: true, force: true });
    } catch {
      // Gone already (another worker clears away, too), or another user's: no reason not to work.
    }
  }
  return mkdtemp(join(parent, PREFIX));
}
