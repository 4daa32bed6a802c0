/** Processor time by process, from Linux's /proc; elsewhere there is none to show. */
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
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

export async function cpuMsOf(pid: number, endedChildren = false): Promise<number> {
  try {
    const stat = await readFile(`/proc/${pid}/stat`, "utf8");
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

/** What was spent between two readings; a connection that was closed in between moves its time to the server's own. */
export function spentBetween(before: CpuTimes, after: CpuTimes): Map<string, number> {
  return new Map([...after].map(([name, ms]) => [name, Math.max(0, ms - (before.get(name) ?? 0))]));
}
