/**
 * Who runs under a process id. Ids are reused, so a remembered id alone proves nothing: it is the same process only
 * when it started at the same time.
 */
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { promisify } from "node:util";

const run = promisify(execFile);

export interface ProcessInfo {
  readonly pid: number;
  readonly parent: number;
  /** Start time in the system's own spelling; equal text, same process. */
  readonly started: string;
  readonly command: string;
}

/** The process under this id, or null when there is none (or only a zombie). */
export async function processInfo(pid: number): Promise<ProcessInfo | null> {
  return process.platform === "linux" ? fromProc(pid) : fromPs(pid);
}

async function fromProc(pid: number): Promise<ProcessInfo | null> {
  try {
    const [stat, commandLine] = await Promise.all([
      readFile(`/proc/${pid}/stat`, "utf8"),
      readFile(`/proc/${pid}/cmdline`, "utf8"),
    ]);
    // "pid (name) state ppid …": the name may hold spaces and brackets, so count from its last bracket (man 5 proc).
    const [state, parent, ...rest] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    const started = rest[17]; // field 22 of the line
    if (state === "Z" || parent === undefined || started === undefined) return null;
    return { pid, parent: Number(parent), started, command: commandLine.replaceAll("\0", " ").trim() };
  } catch {
    return null; // no such process, or it ended between the two reads
  }
}

async function fromPs(pid: number): Promise<ProcessInfo | null> {
  try {
    const { stdout } = await run("ps", ["-ww", "-o", "ppid=,lstart=,command=", "-p", String(pid)]);
    const match = /^\s*(\d+)\s+(\S+\s+\S+\s+\S+\s+\S+\s+\S+)\s+(.*)$/m.exec(stdout);
    const [, parent, started, command] = match ?? [];
    if (parent === undefined || started === undefined || command === undefined) return null;
    return { pid, parent: Number(parent), started, command };
  } catch {
    return null; // ps exits 1 when there is no such process
  }
}
