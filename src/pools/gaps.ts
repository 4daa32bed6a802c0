/** When a pool had no ready worker: what came meanwhile waited for a cold start. */
import type { Sql } from "#platform/database.ts";
import { fencedBy } from "#rollouts/leader.ts";

/**
 * Begins a gap where nobody is ready, ends it where somebody is; at the first look of a term, and whenever it changes.
 * Says the same as often as it likes. Only in the leader's term.
 */
export async function noteReady(sql: Sql, epoch: bigint, model: string, ready: number, at: Date): Promise<void> {
  if (ready === 0) {
    await sql.query(
      `INSERT INTO pool_gaps (model, began_at)
       SELECT $2, greatest($3::timestamptz, (SELECT max(ended_at) FROM pool_gaps WHERE model = $2)) WHERE ${fencedBy("$1")}
       ON CONFLICT DO NOTHING`,
      [epoch, model, at],
    );
    return;
  }
  await sql.query(
    // Clocks of two leaders may differ by a little; a gap does not end before it began.
    `UPDATE pool_gaps SET ended_at = greatest(began_at, $3::timestamptz)
      WHERE model = $2 AND ended_at IS NULL AND ${fencedBy("$1")}`,
    [epoch, model, at],
  );
}
