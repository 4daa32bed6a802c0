/**
 * A folder for files in the making, of one process alone. A process that is killed leaves its folder behind: so each shows
 * by touching its own that it lives, and clears away what nobody has touched for long, whoever made it. Process ids alone
 * would not do: containers that share a disk have the same ones.
 */
import { mkdir, mkdtemp, readdir, rm, stat, utimes } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { errorCode } from "./error-code.ts";
import type { Service } from "./lifecycle.ts";

/** Its folder is gone once it has stopped. */
export interface WorkDir extends Service {
  readonly path: string;
}

const PREFIX = "dream-engine-work-";
const NAME = /^dream-engine-work-[a-z]+-(\d+)-(\d+)-/;
const BEAT_MS = 60_000;
/** Many beats: a process that is stopped or starved for so long and comes back would miss its files. */
export const STALE_MS = 15 * 60_000;

export interface WorkDirOptions {
  readonly parent?: string;
  readonly now?: () => number;
  readonly beatMs?: number;
}

/** `purpose`: for people who look at the disk; lower case letters. */
export async function createWorkDir(
  purpose: string,
  { parent = tmpdir(), now = Date.now, beatMs = BEAT_MS }: WorkDirOptions = {},
): Promise<WorkDir> {
  await clearAway(parent, now());
  const path = await mkdtemp(join(parent, `${PREFIX}${purpose}-${process.pid}-${startedMs()}-`));
  let beating: Promise<void> | undefined;
  const timer = setInterval(() => {
    beating ??= beat(path, parent, now()).finally(() => (beating = undefined));
  }, beatMs);
  timer.unref();

  async function stop(): Promise<void> {
    clearInterval(timer);
    await beating;
    await rm(path, { recursive: true, force: true });
  }
  let stopping: Promise<void> | undefined;
  return { path, stop: () => (stopping ??= stop()) };
}

async function beat(path: string, parent: string, nowMs: number): Promise<void> {
  try {
    await mkdir(path, { recursive: true, mode: 0o700 }); // in case somebody tidied up
    await utimes(path, nowMs / 1000, nowMs / 1000);
    await clearAway(parent, nowMs);
  } catch {
    // The disk is full or away: whoever writes there says so. The next beat tries again.
  }
}

async function clearAway(parent: string, nowMs: number): Promise<void> {
  for (const name of await readdir(parent)) {
    const [, pid, started] = NAME.exec(name) ?? [];
    // A machine that slept wakes up with nobody's folder touched.
    if (pid === undefined || started === undefined || lives(Number(pid), Number(started))) continue;
    const path = join(parent, name);
    try {
      const { mtimeMs } = await stat(path);
      if (nowMs - mtimeMs > STALE_MS) await rm(path, { recursive: true, force: true });
    } catch {
      // Gone already (others clear away, too), or another user's: no reason not to work.
    }
  }
}

const startedMs = (): number => Math.floor(performance.timeOrigin);

/** Whether such a process is seen from here. After a restart in a container the id is often the same. */
function lives(pid: number, started: number): boolean {
  if (pid === process.pid) return started === startedMs();
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return errorCode(error) === "EPERM"; // it is another user's; otherwise there is none
  }
}
