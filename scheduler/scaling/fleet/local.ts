/**
 * Inference workers as child processes of this one, as many as the scaler wants. A pool has places; a place has a worker or
 * waits to start one again. A worker that dies is replaced after a pause that doubles with each death in a row; a crash loop
 * is reported. A worker that drains has left its place.
 *
 *   place:  worker (starting, ready) ──died──▶ pausing ──▶ worker …        taken away: a pause and a start end, an idle worker drains
 */
import type { PoolState } from "#contract/pool.ts";
import type { Clock } from "#platform/clock.ts";
import type { Log } from "#platform/log.ts";

import { chooseDrains } from "../drain.ts";
import type { FleetDriver, PoolWorkers } from "./fleet.ts";
import { killOrphans, nameProcess, type NamedProcess, openNote } from "./orphans.ts";
import { afterDeath, NO_DEATHS } from "./restart-policy.ts";
import { DRAIN_MAX_MS, startWorkerProcess, type WorkerEnd, type WorkerProcess } from "./worker-process.ts";

export interface LocalFleet extends FleetDriver {
  /** `warm`: at least one worker takes jobs. `warming`: one is loading. `cold`: none (also between crashes). */
  state(model: string): PoolState;
  /** Process ids of the workers that run, ready or not. */
  pids(model: string): number[];
  /** When the first worker of this model became ready, in epoch ms; null: none has yet. */
  firstReadyMs(model: string): number | null;
  /** Why the last worker of this model died, while it is in a crash loop; else null. */
  crashLoop(model: string): string | null;
}

export interface LocalFleetOptions {
  readonly models: readonly string[];
  /** Workers of each model to start at once; from then on `scale` says how many. */
  readonly initial: number;
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
  /** Unless 60 s. */
  readonly unledMs?: number;
  /** Unless longer than any rollout may take. */
  readonly drainMaxMs?: number;
}

/**
 * Without a word from a leader for so long, another scheduler leads, and has workers of its own; or the database is away, and
 * no work comes. Long enough for any failover.
 */
const UNLED_MS = 60_000;
const LOOKS_FOR_LEADER_IN_IT = 10;

interface Place {
  readonly name: string;
  worker: WorkerProcess | null;
  deaths: typeof NO_DEATHS;
  crashLoop: string | null;
  /** Of a pause after a death. */
  pause: { readonly untilMs: number; readonly timer: NodeJS.Timeout } | null;
}

/** What a place that was taken away between two deaths leaves to the next one, lest a new place forget a crash loop. */
type Parked = Pick<Place, "deaths" | "crashLoop"> & { readonly untilMs: number };

interface Pool {
  readonly model: string;
  places: Place[];
  /** Told to go. */
  leaving: WorkerProcess[];
  parked: Parked | null;
  startsS: number[];
  firstReadyMs: number | null;
}

export async function startLocalFleet(options: LocalFleetOptions): Promise<LocalFleet> {
  const { clock, log, onChange = () => undefined, unledMs = UNLED_MS, drainMaxMs = DRAIN_MAX_MS } = options;
  await killOrphans(options.noteFolder, log);
  const note = await openNote(options.noteFolder);
  const pools = new Map(
    options.models.map((model): [string, Pool] => [
      model,
      { model, places: [], leaving: [], parked: null, startsS: [], firstReadyMs: null },
    ]),
  );
  const named = new Map<WorkerProcess, NamedProcess>();
  let noted: Promise<void> = Promise.resolve();
  let stopped: Promise<void> | undefined;
  let term = 0n;
  let ledAtMs = clock.now();

  const poolOf = (model: string): Pool => {
    const pool = pools.get(model);
    if (pool === undefined) throw new Error(`expected one of ${options.models.join(", ")}, got ${model}`);
    return pool;
  };
  const allWorkers = (): WorkerProcess[] => [...pools.values()].flatMap(workersOf);

  const changed = (): void => {
    const running = allWorkers().flatMap((worker) => named.get(worker) ?? []);
    noted = noted
      .then(() => note.write(running))
      .catch((error: unknown) => log.warn({ err: error }, "could not note the running workers"));
    onChange();
  };

  function startIn(place: Place, pool: Pool): void {
    place.pause = null;
    const workerLog = log.child({ worker: place.name });
    const worker = startWorkerProcess({
      name: place.name,
      entry: options.entry,
      env: options.envOf(pool.model),
      drainMaxMs,
      clock,
      log: workerLog,
      onChange() {
        if (worker.state() === "ready") {
          place.crashLoop = null;
          pool.startsS.push(worker.tookS() ?? 0);
          pool.firstReadyMs ??= clock.now();
        }
        changed();
      },
      onOver: (end) => whenOver(worker, place, pool, end, workerLog),
    });
    place.worker = worker;
    void remember(worker);
  }

  /** For the note; never rejects. */
  async function remember(worker: WorkerProcess): Promise<void> {
    if (worker.pid === undefined) return;
    const name = await nameProcess(worker.pid);
    if (worker.state() !== "over") named.set(worker, name);
    changed();
  }

  function whenOver(worker: WorkerProcess, place: Place, pool: Pool, end: WorkerEnd, workerLog: Log): void {
    named.delete(worker);
    pool.leaving = pool.leaving.filter((other) => other !== worker);
    if (place.worker === worker) {
      place.worker = null;
      if (stopped === undefined && end.died) restartLater(place, pool, end, workerLog);
    } else if (end.cause !== "exit code 0") {
      workerLog.warn({ cause: end.cause }, "a worker that was told to go did not end well");
    }
    changed();
  }

  function restartLater(place: Place, pool: Pool, { cause, ready_ms }: WorkerEnd, workerLog: Log): void {
    const { deaths, pause_ms, crash_loop } = afterDeath(place.deaths, ready_ms);
    place.deaths = deaths;
    place.crashLoop = crash_loop ? cause : null;
    const detail = { cause, deaths: deaths.in_a_row, pause_ms };
    if (crash_loop) workerLog.error(detail, "worker keeps dying (crash loop); its last lines say why");
    else workerLog.warn(detail, "worker died; replacing it");
    pause(place, pool, pause_ms);
  }

  function pause(place: Place, pool: Pool, ms: number): void {
    place.pause = { untilMs: clock.now() + ms, timer: setTimeout(() => startIn(place, pool), ms) };
  }

  function addPlace(pool: Pool): void {
    const { parked } = pool;
    pool.parked = null;
    const place: Place = {
      name: freeName(pool),
      worker: null,
      deaths: parked?.deaths ?? NO_DEATHS,
      crashLoop: parked?.crashLoop ?? null,
      pause: null,
    };
    pool.places.push(place);
    const waitMs = parked === null ? 0 : parked.untilMs - clock.now();
    if (waitMs > 0) pause(place, pool, waitMs);
    else startIn(place, pool);
  }

  function resize(pool: Pool, desired: number): void {
    while (pool.places.length < desired) addPlace(pool);
    while (pool.places.length > desired && takeAwayUnready(pool));
    const drains = new Set(chooseDrains(readyOf(pool), pool.places.length - desired));
    for (const place of pool.places.filter(({ name }) => drains.has(name))) leave(pool, place);
  }

  for (const pool of pools.values()) resize(pool, options.initial);
  const lookForLeader = setInterval(() => {
    if (clock.now() - ledAtMs < unledMs) return;
    for (const pool of pools.values()) if (pool.places.length > 0) resize(pool, 0);
  }, unledMs / LOOKS_FOR_LEADER_IN_IT);

  // A process that ends without stopping us (a second Ctrl-C) takes its workers with it.
  const killAll = (): void => {
    for (const worker of allWorkers()) worker.kill();
  };
  process.once("exit", killAll);

  async function stop(): Promise<void> {
    clearInterval(lookForLeader);
    for (const { places } of pools.values()) for (const place of places) clearTimeout(place.pause?.timer);
    await Promise.all(allWorkers().map((worker) => worker.end()));
    await noted;
    await note.remove();
    process.off("exit", killAll);
  }

  return {
    async observe(model) {
      const pool = poolOf(model);
      return { ...observed(pool, clock.now()), starts_s: pool.startsS.splice(0) };
    },
    async scale(model, desired, epoch) {
      const pool = poolOf(model);
      if (epoch < term || stopped !== undefined) return;
      term = epoch;
      ledAtMs = clock.now();
      resize(pool, desired);
    },
    state: (model) => poolState(pools.get(model)),
    pids: (model) => workersOf(poolOf(model)).flatMap(({ pid }) => pid ?? []),
    firstReadyMs: (model) => poolOf(model).firstReadyMs,
    crashLoop: (model) => crashLoopOf(poolOf(model)),
    stop: () => (stopped ??= stop()),
  };
}

const workersOf = ({ places, leaving }: Pool): WorkerProcess[] => [
  ...places.flatMap(({ worker }) => worker ?? []),
  ...leaving,
];

/** Takes a place away; its worker ends if it only starts, and drains if it takes jobs. */
function leave(pool: Pool, place: Place): void {
  pool.places = pool.places.filter((other) => other !== place);
  const { worker } = place;
  place.worker = null;
  if (worker === null) return;
  pool.leaving.push(worker);
  if (worker.state() === "ready") worker.drain();
  else void worker.end();
}

/** Of the places without a worker that takes jobs, one that only pauses first, then the youngest start. */
function takeAwayUnready(pool: Pool): boolean {
  // A worker may have its first job a moment before it says that it is ready.
  const unready = pool.places.filter(
    ({ worker }) => worker === null || (worker.state() === "starting" && worker.jobs() === 0),
  );
  const place = unready.find(({ worker }) => worker === null) ?? unready.at(-1);
  if (place === undefined) return false;
  if (place.pause !== null) {
    clearTimeout(place.pause.timer);
    const { deaths, crashLoop } = place;
    pool.parked = { deaths, crashLoop, untilMs: place.pause.untilMs };
  }
  leave(pool, place);
  return true;
}

function freeName({ model, places, leaving }: Pool): string {
  const taken = new Set([...places, ...leaving].map(({ name }) => name));
  let index = 0;
  while (taken.has(`${model}#${index}`)) index += 1;
  return `${model}#${index}`;
}

const readyOf = ({ places }: Pool): PoolWorkers["ready"] =>
  places.flatMap(({ worker }) => (worker?.state() === "ready" ? worker.ready() : []));

function observed(pool: Pool, nowMs: number): Omit<PoolWorkers, "starts_s"> {
  return {
    ready: readyOf(pool),
    starting: pool.places.flatMap(({ name, worker }) => {
      if (worker === null) return { name, since_ms: nowMs }; // all of its start is still to come
      return worker.state() === "starting" ? { name, since_ms: worker.startedMs } : [];
    }),
    draining: pool.leaving.length,
    crash_loop: crashLoopOf(pool),
  };
}

const crashLoopOf = ({ places, parked }: Pool): string | null =>
  places.find(({ crashLoop }) => crashLoop !== null)?.crashLoop ?? parked?.crashLoop ?? null;

function poolState(pool: Pool | undefined): PoolState {
  const states = pool?.places.map(({ worker }) => worker?.state()) ?? [];
  if (states.includes("ready")) return "warm";
  return states.includes("starting") ? "warming" : "cold";
}
