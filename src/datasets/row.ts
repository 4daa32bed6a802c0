/** A row of a dataset as stored. Column by column the `dataset_rows` table of migration 0003. */
import type { RowState } from "#contract/datasets.ts";
import type { DatasetId, RequestId, RolloutId } from "#contract/ids.ts";
import type { Mils } from "#contract/mils.ts";
import type { SamplingParams } from "#contract/rollout.ts";

/** Where one of a row's inputs is. An upload is a blob, too. */
export type InputRef =
  | { readonly kind: "url"; readonly url: string }
  /** Bytes as the customer sent them, still to be normalised. */
  | { readonly kind: "blob"; readonly key: string };

export interface RowSource {
  readonly frame: InputRef;
  readonly actions: InputRef;
}

export interface DatasetRow {
  readonly dataset_id: DatasetId;
  readonly n: number;
  readonly row_id: string | null;
  readonly state: RowState;
  readonly source: RowSource | null;
  readonly params: SamplingParams | null;
  readonly metadata: Readonly<Record<string, unknown>>;
  readonly num_actions: number | null;
  readonly try: number;
  readonly rollout_id: RolloutId | null;
  readonly request_id: RequestId | null;
  readonly error_code: string | null;
  readonly error_message: string | null;
  readonly frames: number | null;
  readonly engine_wall_ms: number | null;
  readonly video_key: string | null;
  readonly video_bytes: bigint | null;
  readonly charged_mils: Mils;
  readonly refunded_mils: Mils;
  readonly finished_at: Date | null;
}

export const ROW_COLUMNS = `
  dataset_id, n, row_id, state, source, params, metadata, num_actions, try, rollout_id, request_id, error_code,
  error_message, frames, engine_wall_ms, video_key, video_bytes, charged_mils, refunded_mils, finished_at`;
