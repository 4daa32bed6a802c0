/** Seconds that workers of each model spent, summed by the hour: what the rent was paid for. */
import type { Sql } from "#platform/database.ts";
import { fencedBy } from "#rollouts/leader.ts";

export interface PoolSeconds {
  readonly starting_s: number;
  /** Taking jobs, idle or not. */
  readonly ready_s: number;
  /** Of those, with at least one job. */
  readonly busy_s: number;
  /** Told to go, and finishing what they had. */
  readonly draining_s: number;
  /** Starts that ended ready. */
  readonly cold_starts: number;
}

/** Adds to the hour in which `at` lies. Only in the leader's term; false when another one leads by now. */
export async function addPoolHours(
  sql: Sql,
  epoch: bigint,
  model: string,
  at: Date,
  { starting_s, ready_s, busy_s, draining_s, cold_starts }: PoolSeconds,
): Promise<boolean> {
  const written = await sql.query(
    `INSERT INTO pool_hours AS h (model, hour, starting_s, ready_s, busy_s, draining_s, cold_starts)
     SELECT $2, date_trunc('hour', $3::timestamptz, 'UTC'), $4, $5, $6, $7, $8 WHERE ${fencedBy("$1")}
     ON CONFLICT (model, hour) DO UPDATE
        SET starting_s = h.starting_s + excluded.starting_s, ready_s = h.ready_s + excluded.ready_s,
            busy_s = h.busy_s + excluded.busy_s, draining_s = h.draining_s + excluded.draining_s,
            cold_starts = h.cold_starts + excluded.cold_starts
     RETURNING model`,
    [epoch, model, at, starting_s, ready_s, busy_s, draining_s, cold_starts],
  );
  return written.length > 0;
}
