/** A rollout as stored. Column by column the `rollouts` table of migration 0001. */
import type { CustomerId, KeyId, RequestId, RolloutId } from "#contract/ids.ts";
import type { RolloutResult } from "#contract/jobs.ts";
import type { Mils } from "#contract/mils.ts";
import type { Lane, RolloutRoute, RolloutStatus, SamplingParams } from "#contract/rollout.ts";

export interface Rollout {
  readonly id: RolloutId;
  readonly customer_id: CustomerId;
  readonly key_id: KeyId;
  readonly request_id: RequestId;
  readonly route: RolloutRoute;
  readonly model: string;
  readonly lane: Lane;
  readonly status: RolloutStatus;
  readonly attempt: number;
  readonly k: number;
  readonly actions_per_candidate: number;
  /** Frames on the bill: k · (actions_per_candidate + 1). */
  readonly frames: number;
  readonly params: SamplingParams;
  readonly fingerprint: Buffer;
  readonly price_mils_per_frame: number;
  readonly charge_mils: Mils;
  readonly refunded_mils: Mils;
  readonly frames_delivered: number | null;
  readonly result: RolloutResult | null;
  readonly error_code: string | null;
  readonly error_message: string | null;
  readonly waiter_id: string | null;
  readonly created_at: Date;
  readonly dispatched_at: Date | null;
  readonly finished_at: Date | null;
  readonly delivered_at: Date | null;
  readonly deadline_at: Date;
}

/** The columns of a Rollout, in the order above; `alias` where the statement joins. The names and types match, so a row
 * is a Rollout. Never `SELECT *`: a column added by a later migration must not break prepared statements. */
