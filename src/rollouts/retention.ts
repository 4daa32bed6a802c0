/**
 * Inputs and videos are kept for a while after their rollout's end, uploads after they came. What is deleted is deleted
 * before it is marked so: whoever dies in between finds it again and deletes what is left.
 */
import type { RolloutId, UploadId } from "#contract/ids.ts";
import { blobKeys } from "#contract/jobs.ts";
import type { Config } from "#platform/config.ts";
import type { Sql } from "#platform/database.ts";

import { fencedBy } from "./leader.ts";
import type { Rollout } from "./rollout.ts";

const DAY_MS = 24 * 3_600_000;

export const retentionMsOf = ({ RETENTION_DAYS }: Pick<Config, "RETENTION_DAYS">): number => RETENTION_DAYS * DAY_MS;

export type Outdated = Pick<Rollout, "id" | "attempt" | "result">;

/**
 * Rollouts that ended before `before` and whose files are still there, oldest first. One that a row of a dataset still
 * counts as running is left: its video has not been copied yet.
 */
export function readOutdated(sql: Sql, before: Date, limit: number): Promise<Outdated[]> {
  return sql.query<Outdated>(
    `SELECT id, attempt, result FROM rollouts r
      WHERE finished_at < $1 AND files_deleted_at IS NULL
        AND NOT EXISTS (SELECT FROM dataset_rows d
                         WHERE d.dataset_id = r.dataset_id AND d.n = r.dataset_row AND d.state = 'running'
                           AND d.rollout_id = r.id)
      ORDER BY finished_at LIMIT $2`,
    [before, limit],
  );
}

/** What a rollout's row names in the blob store; files of runs that did not win are the orphans' sweep's. */
export function filesOf({ id, attempt, result }: Outdated): string[] {
  return [blobKeys.frame(id), blobKeys.actions(id), blobKeys.result(id, attempt), ...(result?.video_keys ?? [])];
}

/** Only in the leader's term. */
export async function markFilesDeleted(sql: Sql, epoch: bigint, ids: readonly RolloutId[]): Promise<void> {
  await sql.query(`UPDATE rollouts SET files_deleted_at = now() WHERE id = ANY ($2) AND ${fencedBy("$1")}`, [
    epoch,
    ids,
  ]);
}

/** Uploads that came before `before` and that no row which has not ended may name: their customer has no such dataset. */
export async function readOutdatedUploads(sql: Sql, before: Date, limit: number): Promise<UploadId[]> {
  const rows = await sql.query<{ id: UploadId }>(
    `SELECT id FROM uploads u
      WHERE created_at < $1
        AND NOT EXISTS (SELECT FROM datasets d
                         WHERE d.customer_id = u.customer_id AND d.finished_at IS NULL)
      ORDER BY created_at LIMIT $2`,
    [before, limit],
  );
  return rows.map(({ id }) => id);
}

/** Only in the leader's term. */
export async function deleteUploads(sql: Sql, epoch: bigint, ids: readonly UploadId[]): Promise<void> {
  await sql.query(`DELETE FROM uploads WHERE id = ANY ($2) AND ${fencedBy("$1")}`, [epoch, ids]);
}
