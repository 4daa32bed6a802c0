/** Which cores a process and what it starts may use. Linux only, as the servers compared here are run. */
import { execFile } from "node:child_process";
import { availableParallelism } from "node:os";
import { promisify } from "node:util";

const run = promisify(execFile);

export interface Cores {
  /** As `taskset -c` takes them: "0", "0-3". Every system has the same ones, alone, while it is measured. */
  readonly system: string;
  /** How many those are. */
  readonly count: number;
  /** Where the load generator runs. */
  readonly load: string;
}

/** The load generator takes the last core, the systems have the others; on one core everything shares it. */
export function readCores(env: NodeJS.ProcessEnv): Cores {
  const last = availableParallelism() - 1;
  const system = env["SYSTEM_CORES"] ?? (last <= 1 ? "0" : `0-${last - 1}`);
  return { system, count: countOf(system), load: env["LOAD_CORES"] ?? String(last) };
}

/** What `start` starts inherits the systems' cores; this process goes back to its own. */
export async function onSystemCores<T>(cores: Cores, start: () => Promise<T>): Promise<T> {
  await pinSelf(cores.system);
  try {
    return await start();
  } finally {
    await pinSelf(cores.load);
  }
}

async function pinSelf(list: string): Promise<void> {
  await run("taskset", ["--all-tasks", "--pid", "--cpu-list", list, String(process.pid)]).catch((error: unknown) => {
    throw new Error(`taskset (util-linux) could not pin this process to the cores ${list}`, { cause: error });
  });
}

function countOf(list: string): number {
  let count = 0;
  for (const part of list.split(",")) {
    const [, first, last = first] = /^(\d+)(?:-(\d+))?$/.exec(part) ?? [];
    if (first === undefined)
      throw new Error(`SYSTEM_CORES: expected a list such as 0-3,6, got ${JSON.stringify(list)}`);
    count += Number(last) - Number(first) + 1;
  }
  return count;
}
