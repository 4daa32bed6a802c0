/** A dataset as stored. Column by column the `datasets` table of migration 0003, but for who works on it. */
import type { DatasetState, PauseReason } from "#contract/datasets.ts";
import type { CustomerId, DatasetId, KeyId, RequestId } from "#contract/ids.ts";
import type { Mils } from "#contract/mils.ts";

export interface Dataset {
  readonly id: DatasetId;
  readonly customer_id: CustomerId;
  readonly key_id: KeyId;
  readonly request_id: RequestId;
  readonly name: string | null;
  readonly model: string;
  readonly metadata: Readonly<Record<string, unknown>>;
  readonly state: DatasetState;
  readonly pause_reason: PauseReason | null;
  readonly on_invalid: "skip" | "reject";
  readonly budget_mils: Mils | null;
  readonly webhook_url: string | null;
  readonly message: string | null;
  readonly created_at: Date;
  readonly received_at: Date | null;
  readonly started_at: Date | null;
  readonly finished_at: Date | null;
  /** While it is ready or paused: since when it waits for its owner (idle.ts). */
  readonly resting_since: Date | null;
  readonly files_deleted_at: Date | null;
  readonly rows_total: number;
  readonly rows_invalid: number;
  readonly rows_pending: number;
  readonly rows_running: number;
  readonly rows_succeeded: number;
  readonly rows_failed: number;
  readonly rows_cancelled: number;
  readonly rows_expired: number;
  readonly frames_expected: bigint;
  readonly rows_unmeasured: number;
  readonly frames_delivered: bigint;
  readonly held_mils: Mils;
  readonly charged_mils: Mils;
  readonly refunded_mils: Mils;
  /** See retry.ts. */
  readonly retry_after: number | null;
  /** See pace.ts. */
  readonly pace_rows: number;
  readonly pace_s: number;
  readonly pace_at: Date | null;
}

export const DATASET_COLUMNS = `
  id, customer_id, key_id, request_id, name, model, metadata, state, pause_reason, on_invalid, budget_mils, webhook_url,
  message, created_at, received_at, started_at, finished_at, resting_since, files_deleted_at, rows_total, rows_invalid, rows_pending,
  rows_running, rows_succeeded, rows_failed, rows_cancelled, rows_expired, frames_expected, rows_unmeasured,
  frames_delivered, held_mils, charged_mils, refunded_mils,
  retry_after, pace_rows, pace_s, pace_at`;
