/**
 * Which rollouts of one lane of a model's backlog go to its queue next: as many as the workers can hold and half as many
 * again, in the order of fair.ts. The queue is kept shallow, because what lies in it can no longer be reordered: that is the
 * backlog's advantage.
 */
import { type CustomerQueue, type FairRow, type FairState, inFairOrder } from "./fair.ts";

/** What a dispatch decision looks at; `k` candidates take `k` places of a worker. */
export interface Waiting extends FairRow {
  readonly k: number;
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

/** Samples to dispatch now, of which the last rollout may go beyond; an idle system always takes one. */
export function roomFor({ held, in_flight }: Capacity): number {
  return Math.max(0, Math.max(1, Math.floor(held * READY_PER_HELD)) - in_flight);
}

/**
 * What to dispatch now, in order. It stops when `room` is full and never skips a large rollout to take a small one behind
 * it. `more`: room is left, and rollouts that were not read may go into it.
 */
export function chooseNext<Row extends Waiting>(
  state: FairState,
  queues: readonly CustomerQueue<Row>[],
  room: number,
): { readonly chosen: readonly Row[]; readonly more: boolean } {
  const chosen: Row[] = [];
  let samples = 0;
  for (const row of inFairOrder(state, queues)) {
    if (samples >= room) break;
    chosen.push(row);
    samples += row.k;
  }
  return { chosen, more: samples < room && queues.some(({ more }) => more) };
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
