/**
 * Which rollouts of one lane of a model's backlog go to its queue next. The queue is kept shallow, because what lies in
 * it can no longer be reordered: that is the backlog's advantage. First come, first served for now; fairness goes in here.
 */

/** What a dispatch decision looks at; `k` candidates take `k` places of a worker. */
export interface Waiting {
  readonly k: number;
  readonly deadline_ms: number;
}

/** All numbers count samples (candidates), not rollouts. */
export interface Capacity {
  /** What the live workers can hold at once. */
  readonly held: number;
  /** What is dispatched and not finished. */
  readonly in_flight: number;
}

/** A worker that finishes one finds the next in the queue, and half a worker's load waits there at most. */
const READY_PER_HELD = 1.5;

/**
 * The prefix of `backlog` (oldest first) to dispatch now. It stops when the target is reached and never skips a large
 * rollout to take a small one behind it; so the last one taken may overshoot, and an idle system always takes one.
 */
export function chooseNext<Row extends Waiting>(
  backlog: readonly Row[],
  { held, in_flight }: Capacity,
  nowMs: number,
): Row[] {
  const target = Math.max(1, Math.floor(held * READY_PER_HELD));
  const chosen: Row[] = [];
  let samples = in_flight;
  for (const row of backlog) {
    if (samples >= target) break;
    if (row.deadline_ms <= nowMs) continue; // the sweep ends it; a worker would only give it up again
    chosen.push(row);
    samples += row.k;
  }
  return chosen;
}

/**
 * What the workers hold when nobody here counts them (they are another deployment): all that are busy, and one more,
 * so that the target grows as long as what is dispatched is taken up at once.
 */
export function estimateHeld(
  dispatched: { readonly samples: number; readonly rollouts: number },
  waitingJobs: number,
  samplesPerWorker: number,
): number {
  const waitingShare = dispatched.rollouts === 0 ? 0 : Math.min(1, waitingJobs / dispatched.rollouts);
  const busySamples = dispatched.samples * (1 - waitingShare);
  return (Math.ceil(busySamples / samplesPerWorker) + 1) * samplesPerWorker;
}
