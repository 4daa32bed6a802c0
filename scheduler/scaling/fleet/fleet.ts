/**
 * What the scaler needs of whoever runs the workers: to see a pool's workers, and to have as many as it wants.
 * test/scheduler/fleet-conformance.ts runs against every driver.
 */
import type { Service } from "#platform/lifecycle.ts";

import type { DrainCandidate } from "../drain.ts";

export interface FleetDriver extends Service {
  /** The workers of one model now. Rejects when it cannot see them; what it saw earlier says nothing then. */
  observe(model: string): Promise<PoolWorkers>;
  /**
   * Makes ready and starting workers of the model as many as `desired`, or puts that under way. Idempotent. Too many: those that
   * are starting go first, then idle ones are drained, idle longest first; one with work stays, and is asked again by the next call.
   * A call in an older term than the latest one seen comes to nothing.
   */
  scale(model: string, desired: number, epoch: bigint): Promise<void>;
}

export interface PoolWorkers {
  /** Those that take jobs. */
  readonly ready: readonly ReadyWorker[];
  /** Those on their way to it; also one that died and is about to be started again. */
  readonly starting: readonly StartingWorker[];
  /** Told to go, and finishing what they have. */
  readonly draining: number;
  /** Why the last one died, while they keep dying; else null. */
  readonly crash_loop: string | null;
  /** Seconds from start to ready of those that became ready since the last look. */
  readonly starts_s: readonly number[];
}

export interface ReadyWorker extends DrainCandidate {
  /** Milliseconds with at least one job since its start; null: it does not say. */
  readonly busy_ms: number | null;
}

export interface StartingWorker {
  readonly name: string;
  /** Epoch ms of its start. */
  readonly since_ms: number;
}
