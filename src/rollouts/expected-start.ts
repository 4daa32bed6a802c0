/** When a rollout that waits begins, from what is ahead of it and what its pool is about. An estimate, for people and clients. */
import { QUEUE_POSITION_MAX } from "#contract/limits.ts";
import type { Lane } from "#contract/rollout.ts";
import type { Pool } from "#pools/pool.ts";

import type { InFlight } from "./dispatch.ts";

/** What is known of the workers of one model. */
export interface PoolOutlook {
  /** As the leading scheduler sees it; null where none looks after it, or has not for a while. */
  readonly pool: PoolAtWork | null;
  /** Rollouts that came out of late, of both lanes: see paceOf. */
  readonly per_second: number;
  /** Dispatched and not finished. */
  readonly in_flight: Readonly<Record<Lane, InFlight>>;
  /** Until a worker is ready, where none is; else 0. */
  readonly cold_start_s: number;
}

export type PoolAtWork = Pick<
  Pool,
  | "ready"
  | "starting"
  | "desired"
  | "maximum"
  | "waiting_rollouts"
  | "waiting_samples"
  | "samples_per_worker"
  | "seconds_per_sample"
  | "crash_loop"
>;

/** A place in the backlog: see queuePosition. */
export interface PlaceInLine {
  readonly position: number;
  readonly lane: Lane;
}

/**
 * Seconds from now, 0 or more; null where nothing is known: behind the last place that is counted, where no worker will
 * come, or where nobody has measured how fast they are.
 *
 * With `a` samples ahead of it, dispatched ones of its lane among them, and `h` samples that the ready workers hold of a lane,
 * it begins when there are fewer than `h` before it, at the pace of those workers; where the workers are not known, when all
 * before it are done. What comes later and goes before it, or a worker that is still starting, is in no estimate.
 */
export function expectedStartS({ position, lane }: PlaceInLine, outlook: PoolOutlook): number | null {
  const { pool, in_flight, cold_start_s } = outlook;
  if (position >= QUEUE_POSITION_MAX || pool?.crash_loop || (pool && pool.maximum === 0 && pool.ready === 0))
    return null;
  const each = samplesEach(pool);
  const ahead = in_flight[lane].samples + (position - 1) * each;
  const held = pool ? workersOf(pool) * pool.samples_per_worker : 0;
  const before = pool ? Math.max(0, ahead - held + 1) : ahead;
  const pace = samplesPerSecond(outlook, each);
  if (before === 0) return cold_start_s;
  return pace === null ? null : cold_start_s + before / pace;
}

/** Those that do the work now, or that will be there when the first of them is ready. */
const workersOf = ({ ready, starting, desired }: PoolAtWork): number =>
  ready > 0 ? ready : Math.max(1, starting, desired);

const samplesEach = (pool: PoolAtWork | null): number =>
  pool !== null && pool.waiting_rollouts > 0 ? pool.waiting_samples / pool.waiting_rollouts : 1;

function samplesPerSecond({ pool, per_second }: PoolOutlook, each: number): number | null {
  if (pool?.seconds_per_sample) return workersOf(pool) / pool.seconds_per_sample;
  return per_second > 0 ? per_second * each : null;
}
