/** Processor time by process, from Linux's /proc; elsewhere there is none to show. */
import { execFile } from "node:child_process";
import { readdir, readFile } from "node:fs/promises";
import { promisify } from "node:util";

import type { Database } from "#platform/database.ts";

const run = promisify(execFile);
/** USER_HZ, 100 on every Linux of today. */
const TICKS_PER_S = 100;
/** In /proc/<pid>/stat after the name: user and system time of the process, and of its children that have ended. */
const OWN_TIMES = [11, 12] as const;
const ENDED_CHILDREN_TIMES = [13, 14] as const;

/** Milliseconds by name; what is asked for and gone counts as nothing. */
export type CpuTimes = ReadonlyMap<string, number>;

/** `process`: its number, or that of a thread as `<process>/task/<thread>`. */
export async function cpuMsOf(process: number | string, endedChildren = false): Promise<number> {
  try {
    const stat = await readFile(`/proc/${process}/stat`, "utf8");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    const places = endedChildren ? [...OWN_TIMES, ...ENDED_CHILDREN_TIMES] : OWN_TIMES;
    return (places.reduce((sum, place) => sum + Number(fields[place] ?? 0), 0) * 1000) / TICKS_PER_S;
  } catch {
    return 0; // not Linux, or it has ended
  }
}

/** The server's processes: those that serve the queue, those that serve everything else, and the rest (writers). */
export async function postgresCpu(db: Database, postmaster: number): Promise<CpuTimes> {
  const { stdout } = await run("pgrep", ["-P", String(postmaster)]).catch(() => ({ stdout: "" }));
  const backends = await db.query<{ pid: number; name: string }>(
    "SELECT pid, application_name AS name FROM pg_stat_activity WHERE backend_type = 'client backend'",
  );
  const nameOf = new Map(backends.map(({ pid, name }) => [pid, name]));
  const sums = new Map<string, number>([["PostgreSQL, its own work", await cpuMsOf(postmaster, true)]]);
  for (const pid of stdout.split("\n").filter(Boolean).map(Number)) {
    const name = nameOf.get(pid);
    const group =
      name === undefined
        ? "PostgreSQL, its own work"
        : name === "dream-engine queue" || name === "plain bullmq"
          ? "PostgreSQL for the queue"
          : "PostgreSQL for accepting, dispatch and settlement";
    sums.set(group, (sums.get(group) ?? 0) + (await cpuMsOf(pid)));
  }
  return sums;
}

/**
 * Of every process that may run on exactly these cores (as Linux lists them: "0", "0-3"), by what it is. An inference worker's
 * busiest thread is its engine; of ffmpegs that have ended the process that starts them tells.
 */
export async function coresCpu(cores: string): Promise<CpuTimes> {
  const sums = new Map<string, number>();
  const add = (name: string, ms: number): void => void sums.set(name, (sums.get(name) ?? 0) + ms);
  for (const entry of await readdir("/proc")) {
    if (!/^\d+$/.test(entry)) continue;
    const status = await readFile(`/proc/${entry}/status`, "utf8").catch(() => "");
    if (/^Cpus_allowed_list:\s+(\S+)$/m.exec(status)?.[1] !== cores) continue;
    const pid = Number(entry);
    const command = await readFile(`/proc/${entry}/cmdline`, "utf8").catch(() => "");
    const [own, all] = [await cpuMsOf(pid), await cpuMsOf(pid, true)];
    if (command.includes("workers/inference/main.ts")) {
      const engine = await busiestThreadMs(pid);
      add("engine", engine);
      add("worker beside its engine", own - engine);
    } else if (command.includes("encoder-process.ts")) {
      add("worker beside its engine", own);
      add("ffmpeg", all - own);
    } else if (command === "") add("the kernel's own threads", own);
    else if (command.includes("ffmpeg")) add("ffmpeg", own);
    else if (/postgres|redis/.test(command)) add("PostgreSQL and Redis", own);
    else add("gateway, scheduler, settlement", own);
  }
  return sums;
}

async function busiestThreadMs(pid: number): Promise<number> {
  const threads = await readdir(`/proc/${pid}/task`).catch(() => []);
  const times = await Promise.all(threads.map((thread) => cpuMsOf(`${pid}/task/${thread}`)));
  return Math.max(0, ...times);
}

/** What was spent between two readings; a connection that was closed in between moves its time to the server's own. */
export function spentBetween(before: CpuTimes, after: CpuTimes): Map<string, number> {
  return new Map([...after].map(([name, ms]) => [name, Math.max(0, ms - (before.get(name) ?? 0))]));
}
