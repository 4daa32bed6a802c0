/** A rollout, to be and as stored: column by column the `rollouts` table of migrations 0001, 0003 and 0004. */
import type { CustomerId, DatasetId, KeyId, RequestId, RolloutId } from "#contract/ids.ts";
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
  /** A dispatched rollout is given up at it. An asynchronous one gets time to run on top when it is dispatched. */
  readonly deadline_at: Date;
  /** A worker must have begun it by then, or it expires; null where somebody waits for it. */
  readonly start_by: Date | null;
  readonly webhook_url: string | null;
  readonly dataset_id: DatasetId | null;
  readonly dataset_row: number | null;
  readonly files_deleted_at: Date | null;
  /** Its video is compared with one of the base spec; then in the bulk lane, whoever waits. */
  readonly scored: boolean;
}

/** What is asked to be taken in. */
export interface NewRollout {
  readonly id: RolloutId;
  readonly key_id: KeyId;
  readonly customer_id: CustomerId;
  readonly request_id: RequestId;
  readonly route: RolloutRoute;
  readonly model: string;
  readonly lane: Lane;
  readonly k: number;
  readonly actions_per_candidate: number;
  readonly params: SamplingParams;
  /** SHA-256 of everything that decides the output. */
  readonly fingerprint: Buffer;
  readonly idempotency_key: string | null;
  /** The gateway process whose client waits, by its name in `gateway_leases`; null for asynchronous work. */
  readonly waiter_id: string | null;
  /** Of asynchronous work: when a worker must have begun it. */
  readonly deadline_at: Date;
  readonly webhook_url: string | null;
  readonly dataset: { readonly id: DatasetId; readonly row: number } | null;
  readonly scored: boolean;
}

/**
 * The columns of a Rollout, whose names and types match: a row of them is a Rollout. Never `SELECT *`, because a
 * column that a later migration adds would break the statements that running processes have prepared.
 */
export const ROLLOUT_COLUMNS = `
  id, customer_id, key_id, request_id, route, model, lane, status, attempt, k, actions_per_candidate, frames, params,
  fingerprint, price_mils_per_frame, charge_mils, refunded_mils, frames_delivered, result, error_code, error_message,
  waiter_id, created_at, dispatched_at, finished_at, delivered_at, deadline_at, start_by, webhook_url,
  dataset_id, dataset_row, files_deleted_at, scored`;
