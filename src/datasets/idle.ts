/** Datasets that wait for an owner who does not come back: they end by themselves, as if the owner had cancelled them. */
import type { DatasetId } from "#contract/ids.ts";
import type { Config } from "#platform/config.ts";
import type { Sql } from "#platform/database.ts";

const DAY_MS = 24 * 3_600_000;

export const datasetIdleMsOf = ({ DATASET_IDLE_DAYS }: Pick<Config, "DATASET_IDLE_DAYS">): number =>
  DATASET_IDLE_DAYS * DAY_MS;

/**
 * Cancels those that have been ready or paused for `idleMs`, oldest first; a runner does what is left to do (call-off.ts,
 * finish.ts) and webhooks are told at the end. Which ones. One that its owner resumes at this moment goes on.
 */
export async function cancelIdle(
  sql: Sql,
  { nowMs, idleMs, limit }: { readonly nowMs: number; readonly idleMs: number; readonly limit: number },
): Promise<DatasetId[]> {
  const rows = await sql.query<{ id: DatasetId }>(
    `UPDATE datasets
        SET state = 'cancelling', pause_reason = NULL, needs_frames = NULL, retry_after = NULL, resting_since = NULL,
            message = CASE state WHEN 'ready' THEN 'nobody started it' ELSE 'it was paused (' || pause_reason || ') and nobody resumed it' END
                      || ' for ' || $2 || ', so it was cancelled'
      WHERE id IN (SELECT id FROM datasets WHERE resting_since < $1 ORDER BY resting_since LIMIT $3 FOR UPDATE SKIP LOCKED)
        AND resting_since < $1
     RETURNING id`,
    [new Date(nowMs - idleMs), daysText(idleMs), limit],
  );
  return rows.map(({ id }) => id);
}

function daysText(ms: number): string {
  const days = Math.round(ms / DAY_MS);
  return days === 1 ? "a day" : `${days} days`;
}
