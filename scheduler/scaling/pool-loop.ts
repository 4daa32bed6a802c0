/** What the two kinds of loop over one pool have in common: managed-pool.ts and traffic-watch.ts. */
import type { Clock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";
import type { QueueSystem } from "#queue/job-queue.ts";

import type { PoolMetrics } from "./metrics.ts";

export const LOOK_EVERY_MS = 1_000;
/** Bound on each call of the fleet, and of the queue. */
export const CALL_TIMEOUT_MS = 5_000;

export interface PoolLoop extends Service {
  readonly model: string;
  /** Workers that take jobs, as of the latest look; null: not known. */
  ready(): number | null;
  /** Work came, to this pool or another. */
  wake(): void;
}

export interface PoolLoopParts {
  readonly db: Database;
  readonly queues: QueueSystem;
  readonly epoch: bigint;
  /** Scored rollouts that a customer may have dispatched at once. */
  readonly scoredAtOnceMax: number;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: PoolMetrics;
}
