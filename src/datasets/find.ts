/** Reading datasets and their rows. Every page is read along an index from where the one before it ended. */
import type { DatasetState, RowState } from "#contract/datasets.ts";
import type { CustomerId, DatasetId } from "#contract/ids.ts";
import type { Sql } from "#platform/database.ts";

import { type Dataset, DATASET_COLUMNS } from "./dataset.ts";
import type { DatasetContext, RowProblem } from "./envelope.ts";
import { type DatasetRow, ROW_COLUMNS } from "./row.ts";

/** Null also when it is another customer's: nobody learns which ids exist. */
export async function findDataset(sql: Sql, id: DatasetId, customerId: CustomerId): Promise<Dataset | null> {
  const [dataset] = await sql.query<Dataset>(
    `SELECT ${DATASET_COLUMNS} FROM datasets WHERE id = $1 AND customer_id = $2`,
    [id, customerId],
  );
  return dataset ?? null;
}

export interface Page<T> {
  readonly data: readonly T[];
  /** Whether more follow. */
  readonly has_more: boolean;
}

const pageOf = <T>(rows: readonly T[], limit: number): Page<T> => ({
  data: rows.slice(0, limit),
  has_more: rows.length > limit,
});

export interface DatasetListing {
  readonly limit: number;
  /** The last one of the page before. */
  readonly after: DatasetId | null;
  readonly state: DatasetState | null;
}

/** Newest first. An `after` that is not this customer's gives an empty page. */
export async function listDatasets(sql: Sql, customerId: CustomerId, wanted: DatasetListing): Promise<Page<Dataset>> {
  const { limit, after, state } = wanted;
  const rows = await sql.query<Dataset>(
    `SELECT ${DATASET_COLUMNS} FROM datasets
      WHERE customer_id = $1 AND ($2::text IS NULL OR state = $2)
        AND ($3::text IS NULL OR (created_at, id) < (SELECT created_at, id FROM datasets WHERE id = $3 AND customer_id = $1))
      ORDER BY created_at DESC, id DESC LIMIT $4`,
    [customerId, state, after, limit + 1],
  );
  return pageOf(rows, limit);
}

export interface RowListing {
  readonly limit: number;
  /** The `n` of the last one of the page before; 0 begins. */
  readonly after: number;
  readonly state: RowState | null;
}

// Two texts: one with an optional state would be planned for neither index.
const ROWS = `SELECT ${ROW_COLUMNS} FROM dataset_rows WHERE dataset_id = $1 AND n > $2 ORDER BY n LIMIT $3`;
const ROWS_OF_STATE = `SELECT ${ROW_COLUMNS} FROM dataset_rows WHERE dataset_id = $1 AND n > $2 AND state = $4 ORDER BY n LIMIT $3`;

/** In the order of the manifest. */
export async function listRows(
  sql: Sql,
  id: DatasetId,
  { limit, after, state }: RowListing,
): Promise<Page<DatasetRow>> {
  const rows =
    state === null
      ? await sql.query<DatasetRow>(ROWS, [id, after, limit + 1])
      : await sql.query<DatasetRow>(ROWS_OF_STATE, [id, after, limit + 1, state]);
  return pageOf(rows, limit);
}

/** The first bad rows. */
export async function listProblems(sql: Sql, id: DatasetId, limit: number): Promise<RowProblem[]> {
  return sql.query<RowProblem>(
    `SELECT n AS line, row_id AS id, error_code AS code, error_message AS message FROM dataset_rows
      WHERE dataset_id = $1 AND state = 'invalid' ORDER BY n LIMIT $2`,
    [id, limit],
  );
}

/** Bad rows in an envelope. */
const PROBLEMS_SHOWN = 20;

/** What `datasetEnvelope` needs beside the dataset. Reads prices, and dataset_rows where it has bad rows. */
export async function datasetContext(
  sql: Sql,
  dataset: Dataset,
  around: Pick<DatasetContext, "retentionMs" | "idleMs" | "publicUrl" | "nowMs"> & { readonly problemsMax?: number },
): Promise<DatasetContext> {
  const { retentionMs, idleMs, publicUrl, nowMs, problemsMax = PROBLEMS_SHOWN } = around;
  const [price] = await sql.query<{ mils: number }>(`SELECT price_in_force($1, now()) AS mils`, [dataset.customer_id]);
  return {
    priceMilsPerFrame: price?.mils ?? 0,
    problems: dataset.rows_invalid === 0 ? [] : await listProblems(sql, dataset.id, problemsMax),
    retentionMs,
    idleMs,
    publicUrl,
    nowMs,
  };
}

/** For signed links, behind which no customer is known. Null where there is no such row. */
export async function findRowVideo(
  sql: Sql,
  id: DatasetId,
  n: number,
): Promise<{ readonly row_id: string; readonly key: string | null; readonly deleted: boolean } | null> {
  const [row] = await sql.query<{ row_id: string; key: string | null; deleted: boolean }>(
    `SELECT r.row_id, r.video_key AS key, d.files_deleted_at IS NOT NULL AS deleted
       FROM dataset_rows r JOIN datasets d ON d.id = r.dataset_id WHERE r.dataset_id = $1 AND r.n = $2`,
    [id, n],
  );
  return row ?? null;
}
