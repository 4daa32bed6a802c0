/**
 * What the scaler remembers of a pool between two looks, and what follows from the next one: the policy's decision, seconds of
 * workers, the pace, the row that others read. Pure; scaler.ts has the effects.
 */
import { PUBLISHED } from "#economics/cost.ts";
import type { PoolSeconds } from "#pools/hours.ts";
import type { Pool } from "#pools/pool.ts";
import type { PoolLook, PoolWork } from "#pools/work.ts";

import { estimateColdStart } from "./cold-start.ts";
import type { PoolWorkers, ReadyWorker } from "./fleet/fleet.ts";
import { observe, type PoolHistory, type Work } from "./history.ts";
import { decide, SCALING_DEFAULTS, type ScalingOptions } from "./policy.ts";
import { NOT_MEASURED, secondsPerFrame, secondsPerSample, withMeasured, type WorkPace } from "./work-pace.ts";

/** What holds for a pool whatever happens; `always_warm` comes with each look, because operators change it. */
export type PoolLimits = Pick<ScalingOptions, "minimum" | "maximum" | "scaledown_s">;

export interface PoolTraits {
  readonly model: string;
  readonly fleet: Pool["fleet"];
  readonly samples_per_worker: number;
  /** The manifest's. */
  readonly cold_start_s: number;
  readonly limits: PoolLimits;
}

export interface PoolMemory {
  readonly history: PoolHistory | null;
  readonly pace: WorkPace;
  /** Oldest first. */
  readonly starts_s: readonly number[];
  /** Generated frames of all that ended since the first look, and the most that this and what is there came to. */
  readonly ended_frames: number;
  readonly arrived_frames: number;
  readonly arrived_work_s: number;
  readonly latest: { readonly at_ms: number; readonly workers: PoolWorkers; readonly waiting: boolean } | null;
}

export interface Seen {
  readonly workers: PoolWorkers;
  /** Jobs in the queue. */
  readonly jobs: { readonly waiting: number; readonly active: number };
  readonly work: PoolLook;
  readonly always_warm_workers: number | null;
}

/** Starts that are remembered. */
const STARTS_KEPT = 15;
/** What the leader before estimated counts as so many measured starts and samples. */
const STARTS_OF_BEFORE = 3;
const SAMPLES_OF_BEFORE = 4;
/** Of what runs, about so much is left. */
const ACTIVE_LEFT = 0.5;
/** Between two looks that are further apart nobody knows what workers did. */
const GAP_MS_MAX = 30_000;
/** Of the published cost basis, for what nobody has measured; the first frame is the customer's. */
const USUAL_FRAMES = PUBLISHED.frames_per_rollout - 1;
const EXPECTED_S_PER_FRAME = PUBLISHED.rollout_s / USUAL_FRAMES;

/** Of a new term; `row` is what the leader before left. */
export function newMemory(row: Pick<Pool, "cold_start_s" | "seconds_per_sample"> | null): PoolMemory {
  const perSample = row?.seconds_per_sample ?? null;
  const samples = perSample === null ? 0 : SAMPLES_OF_BEFORE;
  const before = { busy_s: samples * (perSample ?? 0), frames: samples * USUAL_FRAMES, samples };
  return {
    history: null,
    pace: withMeasured(NOT_MEASURED, before, false),
    starts_s: row === null ? [] : Array.from({ length: STARTS_OF_BEFORE }, () => row.cold_start_s),
    ended_frames: 0,
    arrived_frames: 0,
    arrived_work_s: 0,
    latest: null,
  };
}

export interface Looked {
  readonly memory: PoolMemory;
  readonly pool: Pool;
  /** Since the look before. */
  readonly seconds: PoolSeconds;
}

export function look(memory: PoolMemory, seen: Seen, nowMs: number, traits: PoolTraits): Looked {
  const { workers, work, jobs } = seen;
  const passed_s = passedSince(memory.latest, nowMs);
  const { seconds, busy_s } = workedFor(passed_s, memory.latest, workers);
  const measured = { busy_s, frames: work.succeeded.frames, samples: work.succeeded.samples };
  // What came out in a time of which nobody knows how long they worked says nothing of their pace.
  const pace = passed_s > 0 ? withMeasured(memory.pace, measured, memory.latest?.waiting ?? false) : memory.pace;
  const starts_s = [...memory.starts_s, ...workers.starts_s].slice(-STARTS_KEPT);
  const perFrame = secondsPerFrame(pace, EXPECTED_S_PER_FRAME);
  const cold_start_s = estimateColdStart(traits.cold_start_s, starts_s);
  const options: ScalingOptions = {
    ...SCALING_DEFAULTS,
    ...traits.limits,
    samples_per_worker: traits.samples_per_worker,
    cold_start_s,
    always_warm: seen.always_warm_workers === null ? null : { workers: seen.always_warm_workers },
  };

  const waiting = asWork(sum(work.queued, partOf(work.dispatched, jobs.waiting)), perFrame);
  const active = asWork(partOf(work.dispatched, jobs.active), perFrame * ACTIVE_LEFT);
  const ended_frames = memory.ended_frames + work.ended_frames;
  // Ends are counted a moment late, so the sum may dip; what arrived does not go away again.
  const arrived_frames = Math.max(memory.arrived_frames, ended_frames + work.queued.frames + work.dispatched.frames);
  const arrived_work_s = memory.arrived_work_s + (arrived_frames - memory.arrived_frames) * perFrame;
  const observation = {
    ready: workers.ready.length,
    starting_since_ms: workers.starting.map(({ since_ms }) => since_ms),
    waiting,
    active,
    arrived_work_s,
  };
  const history = observe(memory.history, observation, nowMs, options);
  const { desired, reason } = decide(history, nowMs, options);
  return {
    memory: {
      history,
      pace,
      starts_s,
      ended_frames,
      arrived_frames,
      arrived_work_s,
      latest: { at_ms: nowMs, workers, waiting: waiting.rollouts > 0 },
    },
    seconds,
    pool: {
      model: traits.model,
      fleet: traits.fleet,
      desired,
      reason,
      ready: workers.ready.length,
      starting: workers.starting.length,
      draining: workers.draining,
      waiting_rollouts: waiting.rollouts,
      waiting_samples: waiting.samples,
      active_rollouts: active.rollouts,
      active_samples: active.samples,
      waiting_work_s: waiting.work_s,
      samples_per_worker: traits.samples_per_worker,
      seconds_per_sample: secondsPerSample(pace),
      cold_start_s,
      ...traits.limits,
      always_warm_workers: seen.always_warm_workers,
      crash_loop: workers.crash_loop,
      looked_at: new Date(nowMs),
    },
  };
}

/** As many of those that are dispatched: the queue counts jobs, the database knows how long they are. */
function partOf({ rollouts, samples, frames }: PoolWork, jobs: number): PoolWork {
  // A job whose rollout has ended already is still there for a worker to look at.
  if (rollouts === 0) return { rollouts: jobs, samples: jobs, frames: jobs * USUAL_FRAMES };
  return { rollouts: jobs, samples: Math.ceil((samples * jobs) / rollouts), frames: (frames * jobs) / rollouts };
}

const sum = (one: PoolWork, other: PoolWork): PoolWork => ({
  rollouts: one.rollouts + other.rollouts,
  samples: one.samples + other.samples,
  frames: one.frames + other.frames,
});

const asWork = ({ rollouts, samples, frames }: PoolWork, secondsPerFrame: number): Work => ({
  rollouts,
  samples,
  work_s: frames * secondsPerFrame,
});

/** Seconds since the look before; 0 where that is too long ago, or the clock was set back. */
function passedSince(latest: PoolMemory["latest"], nowMs: number): number {
  const passedMs = latest === null ? 0 : nowMs - latest.at_ms;
  return passedMs > 0 && passedMs <= GAP_MS_MAX ? passedMs / 1000 : 0;
}

/**
 * What workers did in the `s` seconds since the look before: they are taken to have been all the while what they were then. `busy_s` is also that of
 * workers which have become ready since and had jobs at once.
 */
function workedFor(
  s: number,
  latest: PoolMemory["latest"],
  now: PoolWorkers,
): { readonly seconds: PoolSeconds; readonly busy_s: number } {
  const { ready = [], starting = [], draining = 0 } = latest?.workers ?? {};
  const before = new Map(ready.map((worker) => [worker.name, worker]));
  let busy_s = 0;
  for (const worker of now.ready) busy_s += Math.min(s, busySince(before.get(worker.name), worker, s));
  const ready_s = ready.length * s;
  return {
    seconds: {
      starting_s: starting.length * s,
      ready_s,
      busy_s: Math.min(busy_s, ready_s),
      draining_s: draining * s,
      cold_starts: now.starts_s.length,
    },
    busy_s,
  };
}

/** Jobs may be shorter than the pause between two looks, so a worker counts by itself; of one that does not, its jobs tell. */
function busySince(before: ReadyWorker | undefined, now: ReadyWorker, s: number): number {
  if (now.busy_ms === null) return before !== undefined && before.jobs > 0 ? s : 0;
  const earlier = before?.busy_ms ?? 0;
  // Another process under the same name begins anew.
  return (now.busy_ms < earlier ? now.busy_ms : now.busy_ms - earlier) / 1000;
}
