/** The ceiling: the bare onnxruntime loop of bare.py on the systems' cores, one process a core. */
import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import { onSystemCores } from "./affinity.ts";
import { jsonBodyOf } from "./requests.ts";
import { pythonEnv, type Setting } from "./systems.ts";

const run = promisify(execFile);
/** Loading and one batch to warm beside the measured seconds; a batch may be long. */
const RUN_TIMEOUT_MS = 900_000;

/** Rollouts a second of all processes together. */
export async function bareRate(setting: Setting, batch: number, mp4: boolean, seconds: number): Promise<number> {
  const dir = await mkdtemp(join(tmpdir(), "dream-bare-"));
  try {
    const bodies = setting.workload.lengths.map((_, number) => jsonBodyOf(setting.workload, number));
    await writeFile(join(dir, "bodies.json"), JSON.stringify(bodies));
    const options = ["--body", join(dir, "bodies.json"), "--batch", String(batch), "--seconds", String(seconds)];
    const command = ["-m", "bench.peers.bare", ...options, "--processes", String(setting.cores.count)];
    const { stdout } = await onSystemCores(setting.cores, () =>
      run(setting.python, mp4 ? [...command, "--mp4"] : command, { env: pythonEnv(setting), timeout: RUN_TIMEOUT_MS }),
    );
    return (JSON.parse(stdout) as { rollouts_per_s: number }).rollouts_per_s;
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}
