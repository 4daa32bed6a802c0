/**
 * Rows that come in, many at a time: one statement takes the dataset's lock, sees that it is still being received, writes
 * the rows and adds them to its counters. A row whose id an earlier one has is written as invalid and names that one.
 */
import { ApiError } from "#contract/errors.ts";
import type { DatasetId } from "#contract/ids.ts";
import { DATASET_ROWS_MAX } from "#contract/limits.ts";
import type { SamplingParams } from "#contract/rollout.ts";
import type { Sql } from "#platform/database.ts";

import { storable } from "./json-fields.ts";
import type { BadRow } from "./manifest-row.ts";
import { isBad } from "./manifest-row.ts";
import type { RowSource } from "./row.ts";

export interface GoodRow {
  readonly n: number;
  readonly row_id: string;
  readonly source: RowSource;
  readonly params: SamplingParams;
  readonly metadata: Readonly<Record<string, unknown>>;
  readonly num_actions: number | null;
}

export type NewRow = GoodRow | BadRow;

export interface RowsSoFar {
  readonly rows_total: number;
  readonly rows_invalid: number;
}

/** Rows of one statement: large enough that its cost is that of the rows. */
export const ROWS_AT_ONCE = 500;

const INSERT = `
  WITH held AS MATERIALIZED (
    SELECT id FROM datasets WHERE id = $1 AND state = 'receiving' FOR UPDATE
  ),
  wanted AS (
    SELECT w.*, coalesce(first.n, w.first_n) AS taken_by
      FROM held CROSS JOIN jsonb_to_recordset($2)
           AS w (n int, row_id text, source jsonb, params jsonb, metadata jsonb, num_actions int,
                 error_code text, error_message text, first_n int)
      -- By the index, one by one: a plan made while the table was small would join all rows before it in every batch, and
      -- of a subquery with a limit no such plan can be made.
      LEFT JOIN LATERAL (
        SELECT n FROM dataset_rows earlier
         WHERE earlier.dataset_id = $1 AND earlier.row_id = w.row_id AND earlier.state <> 'invalid' LIMIT 1
      ) first ON w.error_code IS NULL
  ),
  added AS (
    INSERT INTO dataset_rows (dataset_id, n, row_id, state, source, params, metadata, num_actions, error_code, error_message)
    SELECT $1, n, row_id,
           CASE WHEN error_code IS NULL AND taken_by IS NULL THEN 'pending' ELSE 'invalid' END,
           CASE WHEN taken_by IS NULL THEN source END,
           CASE WHEN taken_by IS NULL THEN params END,
           coalesce(metadata, '{}'), num_actions,
           CASE WHEN taken_by IS NULL THEN error_code ELSE 'duplicate_id' END,
           CASE WHEN taken_by IS NULL THEN error_message
                ELSE 'id: expected one of its own, got that of line ' || taken_by END
      FROM wanted
    RETURNING state, num_actions
  ),
  counted AS (
    SELECT count(*) AS total,
           count(*) FILTER (WHERE state = 'invalid') AS invalid,
           count(*) FILTER (WHERE state = 'pending') AS pending,
           coalesce(sum(num_actions + 1) FILTER (WHERE state = 'pending'), 0) AS frames,
           count(*) FILTER (WHERE state = 'pending' AND num_actions IS NULL) AS unmeasured
      FROM added
  )
  UPDATE datasets d
     SET rows_total = rows_total + total, rows_invalid = rows_invalid + invalid, rows_pending = rows_pending + pending,
         frames_expected = frames_expected + frames, rows_unmeasured = d.rows_unmeasured + unmeasured, worked_at = now()
    FROM counted
   WHERE d.id IN (SELECT id FROM held)
  RETURNING rows_total, rows_invalid`;

/**
 * Throws ApiError(dataset_rejected) with more rows than there may be, and where the dataset is not being received any more.
 * `rows` in the order of their `n`.
 */
export async function insertRows(sql: Sql, id: DatasetId, rows: readonly NewRow[]): Promise<RowsSoFar> {
  const firstOf = new Map<string, number>();
  const wanted = rows.map((row) => {
    if (isBad(row)) {
      return { n: row.n, row_id: row.row_id, error_code: row.code, error_message: storable(row.message) };
    }
    const first_n = firstOf.get(row.row_id);
    if (first_n === undefined) firstOf.set(row.row_id, row.n);
    return { ...row, first_n };
  });
  const [soFar] = await sql.query<RowsSoFar>(INSERT, [id, JSON.stringify(wanted)]);
  if (!soFar) throw new ApiError("dataset_rejected", "this dataset is not being received any more; send it again");
  if (soFar.rows_total > DATASET_ROWS_MAX) throw tooManyRows();
  return soFar;
}

const tooManyRows = (): ApiError =>
  new ApiError(
    "dataset_rejected",
    `expected at most ${DATASET_ROWS_MAX} rows, got more; make several datasets of them`,
  );
