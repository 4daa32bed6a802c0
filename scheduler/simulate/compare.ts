/** One trace under several policies: what each costs, and how long people wait. */
import type { ScalingOptions } from "../scaling/policy.ts";
import { createHeap } from "./heap.ts";
import { createLevels, rentOf, type Rental } from "./levels.ts";
import { type Run, simulate } from "./simulate.ts";
import type { Timeline } from "./timeline.ts";
import { framesOf, type Trace } from "./trace.ts";

export interface CompareOptions {
  readonly trace: Trace;
  /** The policy under test. */
  readonly scaling: ScalingOptions;
  readonly seconds_per_frame: number;
  readonly look_every_s: number;
  readonly horizon_s: number;
  /** Workers of the policy that is always warm. */
  readonly warm_workers: number;
  /** Rent of a worker in USD an hour: what we pay, no money of a customer. */
  readonly usd_per_hour: number;
  readonly price_usd_per_frame: number;
  /** From 0 to 1, over all policies. */
  readonly onProgress?: (share: number) => void;
}

export interface Waits {
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

export interface Row {
  readonly policy: string;
  readonly cost_usd: number;
  readonly worker_hours: number;
  readonly starts: number;
  /** Of the cost, what went by while workers started, and while they had nothing to do. */
  readonly starting_share: number;
  readonly idle_share: number;
  readonly wait_s: Waits;
  /** Null where the lane had no request. */
  readonly realtime_wait_s: Waits | null;
  readonly bulk_wait_s: Waits | null;
  /** Of the price, what is left after the rent. */
  readonly margin: number;
  /** Of the cheapest rental that gives the same service, request by request (levels.ts). */
  readonly times_optimum: number;
  readonly peak_workers: number;
}

export interface Comparison {
  readonly requests: number;
  readonly frames: number;
  readonly revenue_usd: number;
  readonly rows: readonly Row[];
  readonly timelines: readonly { readonly policy: string; readonly timeline: Timeline }[];
}

/** The window that the pricing page once had. */
const LONG_WINDOW_S = 600;

/** The policy under test, first, and those it is compared with; they differ by nothing but what their name says. */
function policiesOf(scaling: ScalingOptions, warmWorkers: number): { name: string; scaling: ScalingOptions }[] {
  const cold = { ...scaling, minimum: 0, always_warm: null };
  return [
    { name: `this policy (${scaling.scaledown_s} s window)`, scaling },
    { name: `always warm (${warmWorkers})`, scaling: { ...scaling, always_warm: { workers: warmWorkers } } },
    { name: "to zero at once", scaling: { ...cold, scaledown_s: 0 } },
    { name: `${LONG_WINDOW_S} s window`, scaling: { ...cold, scaledown_s: LONG_WINDOW_S } },
  ];
}

export function compare(options: CompareOptions): Comparison {
  const { trace, scaling, onProgress } = options;
  const policies = policiesOf(scaling, options.warm_workers);
  const parts = policies.length + 1;
  const runs = policies.map(({ name, scaling }, index) => ({
    name,
    run: simulate({
      ...options,
      scaling,
      onProgress: (arrived) => onProgress?.((index + arrived / trace.length) / parts),
    }),
  }));
  const best = bestService(trace, scaling, options.seconds_per_frame);
  onProgress?.(1);
  const own = runs[0];
  const frames = framesOf(trace);
  return {
    requests: trace.length,
    frames,
    revenue_usd: frames * options.price_usd_per_frame,
    rows: [
      ...runs.map(({ name, run }) => rowOf(name, run, options, frames)),
      ...(own ? [rowOf("clairvoyant, same service", sameService(own.run), options, frames)] : []),
      rowOf("clairvoyant, best service", best, options, frames),
    ],
    timelines: runs.map(({ name, run }) => ({ policy: name, timeline: run.timeline })),
  };
}

/** What a row is made of; `optimum` is the cheapest rental for the same service. */
interface Outcome extends Rental {
  readonly waits_s: Float64Array;
  readonly optimum: Rental;
}

/** Knows the future, and begins and ends every request when this run did. */
const sameService = ({ waits_s, optimum }: Run): Outcome => ({ ...optimum, waits_s, optimum });

/**
 * Knows the future and makes nobody wait that the maximum does not make wait: first come, first served by that many workers,
 * each started in time. No policy with as many workers serves that well for less rent; one that lets people wait may cost less.
 */
export function bestService(trace: Trace, { maximum, cold_start_s }: ScalingOptions, secondsPerFrame: number): Outcome {
  const doneAt = createHeap();
  const levels = createLevels(cold_start_s);
  const waits_s = new Float64Array(trace.length);
  for (const [request, at] of trace.at_s.entries()) {
    let begin = at;
    while (doneAt.first() <= at || doneAt.size() === maximum) {
      begin = Math.max(at, doneAt.first());
      levels.fall(doneAt.first());
      doneAt.pop();
    }
    levels.rise(begin);
    doneAt.push(begin + (trace.frames[request] ?? 0) * secondsPerFrame);
    waits_s[request] = begin - at;
  }
  for (; doneAt.size() > 0; doneAt.pop()) levels.fall(doneAt.first());
  const optimum = levels.cheapest();
  return { ...optimum, waits_s, optimum };
}

function rowOf(policy: string, outcome: Outcome, options: CompareOptions, frames: number): Row {
  const { trace, usd_per_hour, price_usd_per_frame } = options;
  const rent = rentOf(outcome);
  const worker_hours = rent / 3600;
  const cost_usd = worker_hours * usd_per_hour;
  const wait_s = waitsOf(outcome.waits_s);
  return {
    policy,
    cost_usd,
    worker_hours,
    starts: outcome.starts,
    starting_share: outcome.rent_s.starting / rent,
    idle_share: outcome.rent_s.idle / rent,
    wait_s,
    realtime_wait_s: waitsOfLane(outcome.waits_s, trace, 1, wait_s),
    bulk_wait_s: waitsOfLane(outcome.waits_s, trace, 0, wait_s),
    margin: 1 - cost_usd / (frames * price_usd_per_frame),
    times_optimum: rent / rentOf(outcome.optimum),
    peak_workers: outcome.peak_workers,
  };
}

function waitsOfLane(waits: Float64Array, { realtime }: Trace, lane: 0 | 1, all: Waits): Waits | null {
  if (realtime.every((is) => is === lane)) return all;
  const own = waits.filter((_wait, request) => realtime[request] === lane);
  return own.length === 0 ? null : waitsOf(own);
}

/** The smallest wait that so many do not exceed. */
function waitsOf(waits: Float64Array): Waits {
  const sorted = waits.toSorted();
  const quantile = (share: number): number => sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? 0;
  return { p50: quantile(0.5), p99: quantile(0.99), max: quantile(1) };
}
