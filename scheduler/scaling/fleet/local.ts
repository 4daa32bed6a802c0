/**
 * Inference workers as child processes of this one, a fixed number for each model. A worker that dies is replaced
 * after a pause that doubles with each death in a row; a crash loop is reported. Each slot goes
 *
 *   starting ──ready──▶ ready ──exit──▶ pausing ──▶ starting …      and, from anywhere, ──stop()──▶ stopped
 */
import { type ChildProcess, fork } from "node:child_process";

import type { PoolState } from "#contract/pool.ts";
import type { Clock } from "#platform/clock.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";

import { killOrphans, nameProcess, type NamedProcess, openNote } from "./orphans.ts";
import { afterDeath, NO_DEATHS } from "./restart-policy.ts";
import { forwardOutput } from "./worker-output.ts";

export interface Fleet extends Service {
  /** `warm`: at least one worker takes jobs. `warming`: one is loading. `cold`: none (also between crashes). */
  state(model: string): PoolState;
  /** Workers that take jobs. */
  liveWorkers(model: string): number;
  /** Process ids of the workers that run, ready or not. */
  pids(model: string): number[];
  /** Why the last worker of this model died, while it is in a crash loop; else null. */
  crashLoop(model: string): string | null;
}

export interface LocalFleetOptions {
  readonly models: readonly string[];
  /** Workers of each model. */
  readonly size: number;
  /** The worker's program, run by this Node. */
  readonly entry: string;
  /** The whole environment of a worker; it inherits nothing. */
  readonly envOf: (model: string) => Readonly<Record<string, string>>;
  /** Where the note of running workers is kept. */
  readonly noteFolder: string;
  readonly clock: Clock;
  readonly log: Log;
  /** Called after every change of a worker's state. */
  readonly onChange?: () => void;
}

/** A drain lets jobs in hand finish; below the 10 s that stopping any service may take. */
const DRAIN_MS = 8_000;
/** Loading weights and warming up; a worker that takes longer hangs. */
const READY_TIMEOUT_MS = 300_000;

interface Slot {
  readonly model: string;
  readonly name: string;
  state: "starting" | "ready" | "pausing" | "stopped";
  child: ChildProcess | null;
  named: NamedProcess | null;
  deaths: typeof NO_DEATHS;
  readyAtMs: number | null;
  crashLoop: string | null;
  timer: NodeJS.Timeout | undefined;
}

export async function startLocalFleet(options: LocalFleetOptions): Promise<Fleet> {
  const { clock, log, onChange = () => undefined } = options;
  await killOrphans(options.noteFolder, log);
  const note = await openNote(options.noteFolder);
  const slots = options.models.flatMap((model) =>
    Array.from({ length: options.size }, (_, index) => emptySlot(model, index)),
  );
  let noted: Promise<void> = Promise.resolve();

  const changed = (): void => {
    const running = slots.flatMap((slot) => slot.named ?? []);
    noted = noted
      .then(() => note.write(running))
      .catch((error: unknown) => log.warn({ err: error }, "could not note the running workers"));
    onChange();
  };

  function start(slot: Slot): void {
    const workerLog = log.child({ worker: slot.name });
    // An own environment, an own channel, no stdin; SIGINT of a terminal reaches it too and is ignored there.
    const child = fork(options.entry, [], {
      env: { ...options.envOf(slot.model) },
      execArgv: [],
      stdio: ["ignore", "pipe", "pipe", "ipc"],
    });
    slot.state = "starting";
    slot.child = child;
    slot.readyAtMs = null;
    if (child.stdout) forwardOutput(child.stdout, workerLog);
    if (child.stderr) forwardOutput(child.stderr, workerLog);
    slot.timer = setTimeout(() => {
      workerLog.error({ timeout_ms: READY_TIMEOUT_MS }, "worker did not become ready; killing it");
      child.kill("SIGKILL");
    }, READY_TIMEOUT_MS);

    child.on("message", (message) => {
      if (!isReady(message) || slot.state !== "starting") return;
      clearTimeout(slot.timer);
      slot.state = "ready";
      slot.readyAtMs = clock.now();
      slot.crashLoop = null;
      workerLog.info({ pid: child.pid }, "worker ready");
      changed();
    });
    let over = false;
    const died = (cause: string): void => {
      if (over) return; // a failed spawn may be followed by an exit
      over = true;
      clearTimeout(slot.timer);
      slot.child = null;
      slot.named = null;
      if (slot.state !== "stopped") restartLater(slot, cause, workerLog);
      changed();
    };
    child.once("error", (error) => died(`could not start: ${error.message}`));
    child.once("exit", (code, signal) => died(signal === null ? `exit code ${code}` : `signal ${signal}`));
    void remember(slot, child);
  }

  /** For the note; never rejects. */
  async function remember(slot: Slot, child: ChildProcess): Promise<void> {
    if (child.pid === undefined) return;
    const named = await nameProcess(child.pid);
    if (slot.child === child) slot.named = named;
    changed();
  }

  function restartLater(slot: Slot, cause: string, workerLog: Log): void {
    const readyMs = slot.readyAtMs === null ? 0 : clock.now() - slot.readyAtMs;
    const { deaths, pause_ms, crash_loop } = afterDeath(slot.deaths, readyMs);
    slot.state = "pausing";
    slot.deaths = deaths;
    slot.readyAtMs = null;
    slot.crashLoop = crash_loop ? cause : null;
    const detail = { cause, deaths: deaths.in_a_row, pause_ms };
    if (crash_loop) workerLog.error(detail, "worker keeps dying (crash loop); its last lines say why");
    else workerLog.warn(detail, "worker died; replacing it");
    slot.timer = setTimeout(() => start(slot), pause_ms);
  }

  // A process that ends without stopping us (a second Ctrl-C) takes its workers with it.
  const killAll = (): void => {
    for (const slot of slots) slot.child?.kill("SIGKILL");
  };
  process.once("exit", killAll);
  for (const slot of slots) start(slot);
  let stopped: Promise<void> | undefined;
  const of = (model: string): Slot[] => slots.filter((slot) => slot.model === model);

  return {
    state: (model) => poolState(of(model)),
    liveWorkers: (model) => of(model).filter((slot) => slot.state === "ready").length,
    pids: (model) => of(model).flatMap((slot) => slot.child?.pid ?? []),
    crashLoop: (model) => of(model).find((slot) => slot.crashLoop !== null)?.crashLoop ?? null,
    stop: () =>
      (stopped ??= (async () => {
        await Promise.all(slots.map(endSlot));
        await noted;
        await note.remove();
        process.off("exit", killAll);
      })()),
  };
}

function emptySlot(model: string, index: number): Slot {
  return {
    model,
    name: `${model}#${index}`,
    state: "starting",
    child: null,
    named: null,
    deaths: NO_DEATHS,
    readyAtMs: null,
    crashLoop: null,
    timer: undefined,
  };
}

function poolState(slots: readonly Slot[]): PoolState {
  if (slots.some((slot) => slot.state === "ready")) return "warm";
  return slots.some((slot) => slot.state === "starting") ? "warming" : "cold";
}

/** SIGTERM, a bounded drain, SIGKILL. */
async function endSlot(slot: Slot): Promise<void> {
  clearTimeout(slot.timer);
  slot.state = "stopped";
  const { child } = slot;
  if (!child) return;
  const exited = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGTERM");
  const kill = setTimeout(() => child.kill("SIGKILL"), DRAIN_MS);
  await exited;
  clearTimeout(kill);
}

function isReady(message: unknown): boolean {
  return typeof message === "object" && message !== null && "type" in message && message.type === "ready";
}
