/**
 * Running rows again that did not succeed. The owner's request marks the dataset, and a runner puts the rows back, along
 * the primary key, some at a time, each row once: what fails anew behind the mark stays failed. As long as the mark is set
 * the dataset does not end, whatever its counters say, and a process that dies leaves the mark where the rows are.
 */
import type { Database } from "#platform/database.ts";

import { RETRIED } from "./states.ts";
import { lockMine, type Turn } from "./turn.ts";

/** Rows of one transaction that are looked at, whether they are put back or not. */
const ROWS_AT_ONCE = 2_000;

/** Whether there was something to do; null when the turn is another one's. */
export async function putSomeBack(turn: Turn, db: Database): Promise<boolean | null> {
  return await db.transaction(async (tx) => {
    const dataset = await lockMine(tx, turn);
    if (!dataset) return null;
    if (dataset.retry_after === null) return false;
    const [next] = await tx.query<{ upto: number | null }>(
      `SELECT max(n) AS upto
         FROM (SELECT n FROM dataset_rows WHERE dataset_id = $1 AND n > $2 ORDER BY n LIMIT $3) rows`,
      [dataset.id, dataset.retry_after, ROWS_AT_ONCE],
    );
    const upto = next?.upto ?? null;
    if (upto === null) {
      await tx.query("UPDATE datasets SET retry_after = NULL WHERE id = $1", [dataset.id]);
      return true;
    }
    // All of it sees the rows as they are before it; the lock keeps others from changing them.
    await tx.query(
      `WITH ended AS (
         SELECT count(*) FILTER (WHERE state = 'failed')::int AS failed,
                count(*) FILTER (WHERE state = 'cancelled')::int AS cancelled,
                count(*) FILTER (WHERE state = 'expired')::int AS expired
           FROM dataset_rows WHERE dataset_id = $1 AND n > $2 AND n <= $3
       ),
       put_back AS (
         UPDATE dataset_rows
            SET state = 'pending', error_code = NULL, error_message = NULL, frames = NULL, engine_wall_ms = NULL,
                finished_at = NULL
          WHERE dataset_id = $1 AND n > $2 AND n <= $3 AND state = ANY ($4)
       )
       UPDATE datasets d
          SET rows_pending = d.rows_pending + e.failed + e.cancelled + e.expired,
              rows_failed = d.rows_failed - e.failed, rows_cancelled = d.rows_cancelled - e.cancelled,
              rows_expired = d.rows_expired - e.expired, retry_after = $3
         FROM ended e
        WHERE d.id = $1`,
      [dataset.id, dataset.retry_after, upto, RETRIED],
    );
    return true;
  });
}
