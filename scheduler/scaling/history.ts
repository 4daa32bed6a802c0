/**
 * What the scaling policy remembers of a pool: the latest look, the most workers that were needed at once over the
 * scaledown window, and how much work arrived lately. A plain value that grows with the window and not with the traffic.
 * After a change of leaders it is begun anew, and then everything that runs counts as needed just now: a new leader
 * stops nothing that the old one would have kept.
 */

/** Rollouts, their candidates, and seconds that one warm worker would need for them. */
export interface Work {
  readonly rollouts: number;
  readonly samples: number;
  readonly work_s: number;
}

export interface Observation {
  /** Workers that take jobs; those that drain are no part of the pool. */
  readonly ready: number;
  /** Epoch ms of the start of each worker that is not ready yet. */
  readonly starting_since_ms: readonly number[];
  /** In the backlog or in the queue: no worker has it. */
  readonly waiting: Work;
  /** Active in the queue, whether or not the worker that took it still lives. */
  readonly active: Work;
  /** All work that ever arrived at this pool, in seconds of one worker; only its growth matters. */
  readonly arrived_work_s: number;
}

export interface PoolHistory {
  readonly latest: Observation;
  /** Numbers of workers needed, each larger than the next; `until_ms` is when a look found fewer. */
  readonly peaks: readonly Peak[];
  readonly arrivals: readonly Arrivals[];
}

interface Peak {
  readonly needed: number;
  readonly until_ms: number;
}

interface Arrivals {
  readonly at_ms: number;
  readonly total_work_s: number;
}

export interface HistoryOptions {
  /** Candidates that a worker takes at once. */
  readonly samples_per_worker: number;
  readonly scaledown_s: number;
  readonly cold_start_s: number;
}

/** Points of the record of arrivals for each half of the horizon of `sustainedWorkers`. */
const POINTS_PER_HALF = 8;
/** A rate over less says nothing, however short the cold start. */
const HALF_S_MIN = 10;

/** Adds a look. Looks come in the order of time, several at the same moment are fine; where the clock was set back it is begun anew. */
export function observe(
  history: PoolHistory | null,
  latest: Observation,
  nowMs: number,
  options: HistoryOptions,
): PoolHistory {
  const present = latest.ready + latest.starting_since_ms.length;
  if (history === null || nowMs < (history.peaks.at(-1)?.until_ms ?? nowMs)) {
    const needed = Math.max(present, neededNow(latest, options));
    const arrivals = [{ at_ms: nowMs, total_work_s: latest.arrived_work_s }];
    return { latest, peaks: [{ needed, until_ms: nowMs }], arrivals };
  }
  // What came and went between two looks needed a worker, too.
  const passed = latest.arrived_work_s > history.latest.arrived_work_s ? 1 : 0;
  const needed = Math.max(passed, neededNow(latest, options));
  return {
    latest,
    peaks: withPeak(history.peaks, needed, nowMs, options.scaledown_s),
    arrivals: withArrivals(history.arrivals, latest.arrived_work_s, nowMs, halfMsOf(options)),
  };
}

/** Workers that what is active fits in, at least one; all of them while anything waits. */
function neededNow({ ready, starting_since_ms, waiting, active }: Observation, options: HistoryOptions): number {
  const present = Math.max(1, ready + starting_since_ms.length);
  if (waiting.rollouts > 0) return present;
  const packed = Math.min(active.rollouts, Math.ceil(active.samples / options.samples_per_worker));
  return Math.min(present, packed);
}

function withPeak(peaks: readonly Peak[], needed: number, nowMs: number, scaledownS: number): Peak[] {
  const kept: Peak[] = [];
  for (const [index, peak] of peaks.entries()) {
    // Only the last one was in force until now.
    const until_ms = index === peaks.length - 1 ? nowMs : peak.until_ms;
    if (peak.needed > needed && !isOver(until_ms, nowMs, scaledownS)) kept.push({ needed: peak.needed, until_ms });
  }
  kept.push({ needed, until_ms: nowMs });
  return kept;
}

const isOver = (untilMs: number, nowMs: number, scaledownS: number): boolean => nowMs - untilMs >= scaledownS * 1000;

/** The most workers that were needed at once within the scaledown window, and when that was last so. */
export function peakOf({ peaks }: PoolHistory, nowMs: number, scaledownS: number): Peak {
  const last = peaks.length - 1;
  const peak = peaks.find(({ until_ms }, index) => index === last || !isOver(until_ms, nowMs, scaledownS));
  return peak ?? { needed: 0, until_ms: nowMs };
}

const halfMsOf = ({ cold_start_s }: HistoryOptions): number => Math.max(HALF_S_MIN, cold_start_s) * 1000;

function withArrivals(past: readonly Arrivals[], total: number, nowMs: number, halfMs: number): readonly Arrivals[] {
  const latest = past.at(-1);
  if (latest !== undefined && nowMs - latest.at_ms < halfMs / POINTS_PER_HALF) return past;
  // One point from before the horizon stays: the total at its beginning.
  const firstInside = past.findIndex(({ at_ms }) => at_ms > nowMs - 2 * halfMs);
  const kept = firstInside === -1 ? past.slice(-1) : past.slice(Math.max(0, firstInside - 1));
  return [...kept, { at_ms: nowMs, total_work_s: total }];
}

/**
 * How many workers the arriving work keeps busy, where it keeps arriving: the smaller of two rates, over the last cold
 * start and over the one before. A single batch shows in one of them only and counts nothing; it is backlog.
 */
export function sustainedWorkers({ latest, arrivals }: PoolHistory, nowMs: number, options: HistoryOptions): number {
  const halfMs = halfMsOf(options);
  const middle = arrivals.findLast(({ at_ms }) => at_ms <= nowMs - halfMs);
  const begin = arrivals.findLast(({ at_ms }) => at_ms <= nowMs - 2 * halfMs);
  if (middle === undefined || begin === undefined || middle.at_ms === begin.at_ms) return 0;
  const before = (middle.total_work_s - begin.total_work_s) / (middle.at_ms - begin.at_ms);
  const lately = (latest.arrived_work_s - middle.total_work_s) / (nowMs - middle.at_ms);
  return Math.max(0, Math.min(before, lately) * 1000);
}
