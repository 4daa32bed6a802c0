/**
 * How many workers a pool should have, and why. Pure: of what was seen and the time. The guarantees and how the defaults
 * were chosen are in docs/scaling.md; `dream-engine simulate` runs this very code under a simulated clock.
 *
 * **Scaling in** is ski rental: a worker that is not needed costs its rent by the second, one that is needed again costs
 * a cold start. A worker goes once fewer were needed all through the scaledown window, never sooner. Workers are not
 * told apart for that: the k-th is idle exactly when fewer than k are needed, so the most that were needed at once over the
 * window is what stays, however the queue spreads the jobs.
 *
 * **Scaling out** compares the predicted wall of the backlog with a cold start. With n workers ready or starting, r_i
 * seconds left of the i-th start, W seconds of work present and λ workers' worth of work that keeps arriving, and m more
 * workers that are ready after a cold start of C seconds, the backlog is gone after T seconds where
 *
 *     n·T − Σr_i + m·(T − C) = W + λ·T     ⇒     T(m) = (W + Σr_i + m·C) / (n + m − λ)
 *
 * The last of the m works T(m) − C seconds before that. At T ≤ C it comes when all is done; it has paid for itself when it
 * has done w seconds of work. So m is the largest number with T(m) ≥ C + w:
 *
 *     m = ⌊ (W + Σr_i − (C + w)·(n − λ)) / w ⌋
 *
 * `break_even` is w / C: at 1 a started worker works at least as long as it took to start, so starts are at most half of what
 * scaling out costs. It does not flap: after m starts the right side is below 1, and it falls as long as no more
 * arrives than was predicted. A rollout runs on one worker, so there are never more starts under way than rollouts that wait;
 * and where there is work and no worker at all, m is at least 1.
 */
import type { Reason, Weighed } from "#pools/reason.ts";

import { type HistoryOptions, type PoolHistory, peakOf, sustainedWorkers } from "./history.ts";

export interface ScalingOptions extends HistoryOptions {
  readonly minimum: number;
  readonly maximum: number;
  /** A worker goes after so long without need. */
  readonly scaledown_s: number;
  /** From a worker's start to ready: see estimateColdStart. */
  readonly cold_start_s: number;
  /** Work that a started worker must find, in cold starts. */
  readonly break_even: number;
  /** So many workers are kept whatever comes; null: not always warm. Who decided that, and why, is recorded elsewhere. */
  readonly always_warm: { readonly workers: number } | null;
}

export const SCALING_DEFAULTS = {
  minimum: 0,
  scaledown_s: 60,
  break_even: 1,
  always_warm: null,
} as const satisfies Partial<ScalingOptions>;

/** Work that a started worker must find even where starting costs nothing. */
const WORK_S_MIN = 1;

export interface Decision {
  /** Ready and starting workers that there should be. */
  readonly desired: number;
  readonly reason: Reason;
}

export function decide(history: PoolHistory, nowMs: number, options: ScalingOptions): Decision {
  const { desired, reason } = decideByWork(history, nowMs, options);
  const { minimum, maximum, always_warm } = options;
  if (desired > maximum) return { desired: maximum, reason: { kind: "maximum", maximum, needed: desired } };
  const warm = Math.min(maximum, always_warm?.workers ?? 0);
  const workers = Math.max(Math.min(minimum, maximum), warm);
  if (desired >= workers) return { desired, reason };
  return { desired: workers, reason: { kind: warm === workers ? "always_warm" : "minimum", workers, needed: desired } };
}

function decideByWork(history: PoolHistory, nowMs: number, options: ScalingOptions): Decision {
  const { ready, starting_since_ms, waiting, active } = history.latest;
  const workers = ready + starting_since_ms.length;
  if (waiting.rollouts > 0) {
    const weighed = weigh(history, nowMs, options);
    const start = startsThatPay(weighed, starting_since_ms.length, options);
    const desired = workers + start;
    if (start === 0) return { desired, reason: { kind: "wait", ...weighed } };
    return { desired, reason: { kind: workers === 0 ? "from_zero" : "scale_out", start, ...weighed } };
  }
  if (workers === 0) {
    return active.rollouts > 0
      ? { desired: 1, reason: { kind: "orphaned_work", active_rollouts: active.rollouts } }
      : { desired: 0, reason: { kind: "no_work" } };
  }
  return scaleIn(history, nowMs, workers, options);
}

/** Nothing waits: as many as were needed at once within the window. Without a need nobody is started. */
function scaleIn(history: PoolHistory, nowMs: number, workers: number, { scaledown_s }: ScalingOptions): Decision {
  const { needed: peak, until_ms } = peakOf(history, nowMs, scaledown_s);
  const neededNow = history.peaks.at(-1)?.needed ?? 0;
  if (peak < workers) return { desired: peak, reason: { kind: "scale_in", workers, peak, window_s: scaledown_s } };
  if (neededNow >= workers) return { desired: workers, reason: { kind: "busy", workers } };
  const unneeded_s = (nowMs - until_ms) / 1000;
  return { desired: workers, reason: { kind: "scaledown_window", peak, unneeded_s, window_s: scaledown_s } };
}

interface Weighing extends Weighed {
  /** Seconds left of all starts under way, together; one that is late is expected any moment. */
  readonly starting_s: number;
}

function weigh(history: PoolHistory, nowMs: number, options: ScalingOptions): Weighing {
  const { ready, starting_since_ms, waiting, active } = history.latest;
  const workers = ready + starting_since_ms.length;
  let starting_s = 0;
  for (const since of starting_since_ms) starting_s += Math.max(0, options.cold_start_s - (nowMs - since) / 1000);
  const work_s = waiting.work_s + active.work_s;
  const sustained_workers = sustainedWorkers(history, nowMs, options);
  const spare = workers - sustained_workers;
  return {
    waiting_rollouts: waiting.rollouts,
    work_s,
    workers,
    sustained_workers,
    wall_s: spare > 0 ? (work_s + starting_s) / spare : null,
    break_even_s: options.cold_start_s + workThatPays(options),
    starting_s,
  };
}

const workThatPays = ({ cold_start_s, break_even }: ScalingOptions): number =>
  Math.max(WORK_S_MIN, cold_start_s * break_even);

/** m of the formula at the top; those on their way take what waits, too. */
function startsThatPay(weighed: Weighing, starting: number, options: ScalingOptions): number {
  const { work_s, starting_s, workers, sustained_workers, break_even_s, waiting_rollouts } = weighed;
  const excess_s = work_s + starting_s - break_even_s * (workers - sustained_workers);
  const paying = Math.floor(excess_s / workThatPays(options));
  return Math.max(workers === 0 ? 1 : 0, Math.min(paying, waiting_rollouts - starting));
}
