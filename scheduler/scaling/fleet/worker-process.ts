/**
 * One inference worker as a child process, from its start to its end:
 *
 *   starting ──"ready"──▶ ready ──drain()──▶ draining ──exit──▶ over        and, from anywhere, ──exit──▶ over
 *
 * What it is told: `drain` over the channel (take no more jobs, finish those in hand, exit 0); SIGTERM: end within seconds,
 * putting back what is not done. What it tells: `ready`, and `jobs` with their number at each change.
 */
import { fork } from "node:child_process";

import { ASYNC_RUN_MAX_MS } from "#contract/limits.ts";
import { createBusyTime } from "#platform/busy-time.ts";
import type { Clock } from "#platform/clock.ts";
import type { Log } from "#platform/log.ts";

import type { ReadyWorker } from "./fleet.ts";
import { forwardOutput } from "./worker-output.ts";

/** After SIGTERM; below the 10 s that stopping any service may take. */
const END_MS = 8_000;
/** Loading weights and warming up; a worker that takes longer hangs. */
const READY_TIMEOUT_MS = 300_000;
/** A drain that hangs. Every job has to end by its deadline, which leaves it this much time to run at most. */
export const DRAIN_MAX_MS = ASYNC_RUN_MAX_MS + 60_000;

export interface WorkerProcessOptions {
  readonly name: string;
  /** The worker's program, run by this Node. */
  readonly entry: string;
  /** Its whole environment; it inherits nothing. */
  readonly env: Readonly<Record<string, string>>;
  readonly drainMaxMs: number;
  readonly clock: Clock;
  readonly log: Log;
  /** It became ready, or is draining. */
  readonly onChange: () => void;
  /** Once, when the process is gone or could not be started. */
  readonly onOver: (end: WorkerEnd) => void;
}

export interface WorkerEnd {
  /** Nobody told it to go. */
  readonly died: boolean;
  /** For an operator. */
  readonly cause: string;
  /** How long it had been ready; 0 when it never was. */
  readonly ready_ms: number;
}

export interface WorkerProcess {
  readonly name: string;
  readonly pid: number | undefined;
  readonly startedMs: number;
  state(): "starting" | "ready" | "draining" | "over";
  /** Seconds from start to ready; null while it is not. */
  tookS(): number | null;
  jobs(): number;
  /** What the scaler wants to know of it while it is ready. */
  ready(): ReadyWorker;
  /** Of a ready worker: no more jobs; it ends when those in hand are done. Of one that drains: nothing more. */
  drain(): void;
  /** Now or within seconds; what it has is put back. Resolves when it is gone. */
  end(): Promise<void>;
  /** In the last moment of this process, which waits for nothing. */
  kill(): void;
}

export function startWorkerProcess(options: WorkerProcessOptions): WorkerProcess {
  const { name, clock, log, onChange, onOver } = options;
  // An own environment, an own channel, no stdin; SIGINT of a terminal reaches it too and is ignored there.
  const child = fork(options.entry, [], {
    env: { ...options.env },
    execArgv: [],
    stdio: ["ignore", "pipe", "pipe", "ipc"],
  });
  log.info({ pid: child.pid }, "worker started");
  if (child.stdout) forwardOutput(child.stdout, log);
  if (child.stderr) forwardOutput(child.stderr, log);
  const startedMs = clock.now();
  let state: ReturnType<WorkerProcess["state"]> = "starting";
  let readyAtMs: number | null = null;
  let jobs = 0;
  let idleSinceMs = startedMs;
  const busy = createBusyTime(clock);
  let told = false;
  const gone = Promise.withResolvers<void>();
  let timer = setTimeout(() => {
    log.error({ timeout_ms: READY_TIMEOUT_MS }, "worker did not become ready; killing it");
    child.kill("SIGKILL");
  }, READY_TIMEOUT_MS);

  child.on("message", (message) => {
    const said = read(message);
    if (said === null || state === "over") return;
    if (said.type === "jobs") {
      // From the first job to the last one the worker is not idle; the moment of the report stands for that of the end.
      if (said.count === 0 && jobs > 0) idleSinceMs = clock.now();
      jobs = said.count;
      busy.set(jobs);
      return;
    }
    if (state !== "starting" || told) return;
    clearTimeout(timer);
    state = "ready";
    readyAtMs = clock.now();
    idleSinceMs = readyAtMs;
    log.info({ pid: child.pid, took_ms: readyAtMs - startedMs }, "worker ready");
    onChange();
  });

  const over = (cause: string): void => {
    if (state === "over") return; // a failed spawn may be followed by an exit
    clearTimeout(timer);
    state = "over";
    gone.resolve();
    onOver({ died: !told, cause, ready_ms: readyAtMs === null ? 0 : clock.now() - readyAtMs });
  };
  child.once("error", (error) => over(`could not start: ${error.message}`));
  child.once("exit", (code, signal) => over(signal === null ? `exit code ${code}` : `signal ${signal}`));

  function killAfter(ms: number, why: string): void {
    clearTimeout(timer);
    timer = setTimeout(() => {
      log.error({ timeout_ms: ms, jobs }, why);
      child.kill("SIGKILL");
    }, ms);
  }

  return {
    name,
    pid: child.pid,
    startedMs,
    state: () => state,
    tookS: () => (readyAtMs === null ? null : (readyAtMs - startedMs) / 1000),
    jobs: () => jobs,
    ready: () => ({ name, jobs, idle_since_ms: idleSinceMs, busy_ms: busy.ms() }),
    drain() {
      if (state !== "ready") return;
      state = "draining";
      told = true;
      killAfter(options.drainMaxMs, "worker did not finish draining; killing it");
      // A channel that just closed: the exit follows.
      child.send({ type: "drain" }, (error) => error && log.warn({ err: error }, "could not tell a worker to drain"));
      onChange();
    },
    end() {
      if (state === "over") return gone.promise;
      told = true;
      child.kill("SIGTERM");
      killAfter(END_MS, "worker did not end; killing it");
      return gone.promise;
    },
    kill: () => void child.kill("SIGKILL"),
  };
}

function read(message: unknown): { type: "ready" } | { type: "jobs"; count: number } | null {
  if (typeof message !== "object" || message === null || !("type" in message)) return null;
  if (message.type === "ready") return { type: "ready" };
  if (message.type !== "jobs" || !("count" in message) || !Number.isSafeInteger(message.count)) return null;
  return { type: "jobs", count: message.count as number }; // the line above saw it
}
