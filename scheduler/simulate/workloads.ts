/** Generated traces: the shapes of traffic that a pool has to bear. The same options give the same trace. */
import { createRandom, type Random } from "./random.ts";
import { type Trace, traceOf } from "./trace.ts";

export const WORKLOADS = ["poisson", "bursty", "diurnal", "planner-dataset", "adversary"] as const;
export type Workload = (typeof WORKLOADS)[number];

export interface WorkloadOptions {
  /** Of the whole trace, all candidates counted; rounded to whole rollouts. The adversary takes what its pace needs. */
  readonly frames: number;
  readonly hours: number;
  readonly seed: number;
  /** What the adversary knows: when a worker that has nothing to do goes, and how long one rollout keeps it from that. */
  readonly scaledown_s: number;
  readonly cold_start_s: number;
  readonly seconds_per_frame: number;
  /** The adversary's margin: the scaler looks only so often. */
  readonly look_every_s: number;
}

/** The standard rollout of the pricing page. */
export const FRAMES_PER_ROLLOUT = 49;
const CUSTOMERS = ["a", "b", "c", "d"] as const;
/** An evaluation batch of a few minutes, then quiet for the rest of an hour. */
const BURST_S_MEAN = 300;
const QUIET_S_MEAN = 3_300;
/** At night a tenth of the day's mean rate is left. */
const DAY_S = 86_400;
const DAY_SWING = 0.9;
/** A planner asks for so many futures at once. */
const PLANNER_K = 8;
/** Of the frames, the planner's part, evenly all the time; the dataset comes in one piece after a quarter of it. */
const PLANNER_SHARE = 0.5;
const DATASET_AFTER = 0.25;

export function generate(workload: Workload, options: WorkloadOptions): Trace {
  const seconds = options.hours * 3600;
  const rollouts = Math.max(1, Math.round(options.frames / FRAMES_PER_ROLLOUT));
  const random = createRandom(options.seed);
  const make = {
    poisson: () => singles(poisson(random, rollouts, seconds), CUSTOMERS, random),
    bursty: () => singles(bursty(random, rollouts, seconds), CUSTOMERS, random),
    diurnal: () => singles(diurnal(random, rollouts, seconds), CUSTOMERS, random),
    "planner-dataset": () => plannerBesideDataset(rollouts, seconds),
    adversary: () => singles(adversary(options, seconds), ["adversary"], random),
  } satisfies Record<Workload, () => Trace>;
  return make[workload]();
}

/** Rollouts of one candidate that somebody waits for, each of any of the customers. Sorts `at_s` in place. */
function singles(at_s: Float64Array, customers: readonly string[], random: Random): Trace {
  const { length } = at_s;
  return {
    length,
    at_s: at_s.sort(),
    frames: new Float64Array(length).fill(FRAMES_PER_ROLLOUT),
    realtime: new Uint8Array(length).fill(1),
    customer: new Uint32Array(length).map(() => random.below(customers.length)),
    customers,
  };
}

/** Given their number, the arrivals of a Poisson process are independent and uniform. */
const poisson = (random: Random, rollouts: number, seconds: number): Float64Array =>
  new Float64Array(rollouts).map(() => random.next() * seconds);

/** On and off for exponential times; all arrivals fall evenly into the times that are on. */
function bursty(random: Random, rollouts: number, seconds: number): Float64Array {
  const bursts: { begin_s: number; length_s: number }[] = [];
  for (let at = random.exponential(QUIET_S_MEAN); at < seconds || bursts.length === 0;) {
    const length_s = random.exponential(BURST_S_MEAN);
    bursts.push({ begin_s: Math.min(at, seconds), length_s });
    at += length_s + random.exponential(QUIET_S_MEAN);
  }
  const on = bursts.reduce((sum, { length_s }) => sum + length_s, 0);
  let burst = 0;
  let before = 0;
  return poisson(random, rollouts, on)
    .sort()
    .map((offset) => {
      while (burst < bursts.length - 1 && offset >= before + (bursts[burst]?.length_s ?? 0)) {
        before += bursts[burst]?.length_s ?? 0;
        burst += 1;
      }
      return (bursts[burst]?.begin_s ?? 0) + offset - before;
    });
}

/** Thinned (Lewis and Shedler, 1979), with the trough at the beginning of a day. */
function diurnal(random: Random, rollouts: number, seconds: number): Float64Array {
  return new Float64Array(rollouts).map(() => {
    for (;;) {
      const at = random.next() * seconds;
      const rate = 1 - DAY_SWING * Math.cos((2 * Math.PI * at) / DAY_S);
      if (random.next() * (1 + DAY_SWING) < rate) return at;
    }
  });
}

function plannerBesideDataset(rollouts: number, seconds: number): Trace {
  const decisions = Math.max(1, Math.round((rollouts * PLANNER_SHARE) / PLANNER_K));
  const rows = Math.max(1, rollouts - decisions * PLANNER_K);
  const planner = Array.from({ length: decisions }, (_, n) => ({
    at_s: (seconds * n) / decisions,
    frames: FRAMES_PER_ROLLOUT * PLANNER_K,
    realtime: true,
    customer: "planner",
  }));
  const row = { at_s: seconds * DATASET_AFTER, frames: FRAMES_PER_ROLLOUT, realtime: false, customer: "dataset" };
  return traceOf([...planner, ...Array.from({ length: rows }, () => row)]);
}

/** Waits until the worker of its last request is gone, and asks at once. */
function adversary(
  { scaledown_s, cold_start_s, look_every_s, ...options }: WorkloadOptions,
  seconds: number,
): Float64Array {
  const pace = cold_start_s + FRAMES_PER_ROLLOUT * options.seconds_per_frame + scaledown_s + 2 * look_every_s;
  return new Float64Array(Math.max(1, Math.floor(seconds / pace))).map((_zero, n) => n * pace);
}
