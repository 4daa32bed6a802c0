/** Datasets whose files are to go, as the scheduler's janitor reads and marks them. */
import type { DatasetId } from "#contract/ids.ts";
import type { Sql } from "#platform/database.ts";

import { rejectDataset } from "./reject.ts";

export interface FilesDue {
  /** Of datasets that ran and ended before this. */
  readonly ended: Date;
  /** Of datasets that were refused before this: nobody can want them, but their gateway may still write. */
  readonly rejected: Date;
}

export async function readDatasetsToClean(sql: Sql, before: FilesDue, limit: number): Promise<DatasetId[]> {
  const rows = await sql.query<{ id: DatasetId }>(
    `SELECT id FROM datasets
      WHERE files_deleted_at IS NULL AND finished_at < CASE state WHEN 'rejected' THEN $2::timestamptz ELSE $1::timestamptz END
      ORDER BY finished_at LIMIT $3`,
    [before.ended, before.rejected, limit],
  );
  return rows.map(({ id }) => id);
}

/**
 * Rows of a dataset that was rejected, the first so many: nothing of it ran, nothing was paid, and whoever sends bad ones
 * over and over must not fill the database. How many; 0 of any other dataset.
 */
export async function deleteRejectedRows(sql: Sql, id: DatasetId, limit: number): Promise<number> {
  const [deleted] = await sql.query<{ rows: number }>(
    `WITH held AS MATERIALIZED (SELECT id FROM datasets WHERE id = $1 AND state = 'rejected' FOR UPDATE),
     gone AS (
       DELETE FROM dataset_rows
        WHERE dataset_id = (SELECT id FROM held)
          AND n <= (SELECT max(n) FROM (SELECT n FROM dataset_rows WHERE dataset_id = $1 ORDER BY n LIMIT $2) first)
       RETURNING state, num_actions
     )
     UPDATE datasets d
        SET rows_total = d.rows_total - g.rows, rows_invalid = d.rows_invalid - g.invalid,
            rows_pending = d.rows_pending - g.rows + g.invalid, frames_expected = d.frames_expected - g.frames,
            rows_unmeasured = d.rows_unmeasured - g.unmeasured
       FROM (SELECT count(*)::int AS rows, count(*) FILTER (WHERE state = 'invalid')::int AS invalid,
                    coalesce(sum(num_actions + 1) FILTER (WHERE state = 'pending'), 0) AS frames,
                    count(*) FILTER (WHERE state = 'pending' AND num_actions IS NULL)::int AS unmeasured
               FROM gone) g
      WHERE d.id IN (SELECT id FROM held)
     RETURNING g.rows`,
    [id, limit],
  );
  return deleted?.rows ?? 0;
}

/** Once they are: a crash before this leaves files to be found again. */
export async function markDatasetFilesDeleted(sql: Sql, id: DatasetId): Promise<void> {
  await sql.query(`UPDATE datasets SET files_deleted_at = now() WHERE id = $1 AND finished_at IS NOT NULL`, [id]);
}

/** While one comes in, its gateway says so every few seconds. */
const SILENT_MS = 10 * 60_000;

/** Datasets whose upload broke off with the gateway that took it in; which ones. */
export async function rejectAbandoned(sql: Sql, limit: number): Promise<DatasetId[]> {
  const rows = await sql.query<{ id: DatasetId }>(
    `SELECT id FROM datasets
      WHERE finished_at IS NULL AND state = 'receiving' AND worked_at < now() - $1::float8 * interval '1 ms' LIMIT $2`,
    [SILENT_MS, limit],
  );
  const rejected: DatasetId[] = [];
  for (const { id } of rows) {
    if (await rejectDataset(sql, id, "its upload broke off: send it again")) rejected.push(id);
  }
  return rejected;
}
