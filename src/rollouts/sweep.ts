/** What the sweep reads and writes; what it decides is in scheduler/sweep. */
import type { RolloutId } from "#contract/ids.ts";
import type { Sql } from "#platform/database.ts";

import { fencedBy } from "./leader.ts";
import { type Rollout, ROLLOUT_COLUMNS } from "./rollout.ts";

/**
 * The dispatched rollout that has been waiting longest for a look, locked until the transaction ends: no settlement
 * comes in between looking and deciding. One that somebody is settling just now is passed over. Null when no look is
 * due, or when the leader's term is over.
 */
export async function nextOverdue(tx: Sql, epoch: bigint, now: Date): Promise<Rollout | null> {
  const [rollout] = await tx.query<Rollout>(
    `SELECT ${ROLLOUT_COLUMNS} FROM rollouts WHERE status = 'dispatched' AND sweep_at <= $2 AND ${fencedBy("$1")}
      ORDER BY sweep_at LIMIT 1 FOR UPDATE SKIP LOCKED`,
    [epoch, now],
  );
  return rollout ?? null;
}

/** When to look again. */
export async function postpone(tx: Sql, id: RolloutId, sweepAt: Date): Promise<void> {
  await tx.query(`UPDATE rollouts SET sweep_at = $2 WHERE id = $1 AND status = 'dispatched'`, [id, sweepAt]);
}

/** Queued rollouts that nobody came to run before their deadline. */
export async function readExpired(sql: Sql, now: Date, limit: number): Promise<RolloutId[]> {
  const rows = await sql.query<{ id: RolloutId }>(
    `SELECT id FROM rollouts WHERE status = 'queued' AND deadline_at <= $1 ORDER BY deadline_at LIMIT $2`,
    [now, limit],
  );
  return rows.map(({ id }) => id);
}

/** Those of `ids` that are rollouts, with what decides which of their blobs are still needed. */
export function readOwners(
  sql: Sql,
  ids: readonly string[],
): Promise<Pick<Rollout, "id" | "status" | "attempt" | "result" | "files_deleted_at">[]> {
  return sql.query(`SELECT id, status, attempt, result, files_deleted_at FROM rollouts WHERE id = ANY ($1)`, [ids]);
}

/** Forgets idempotency keys used before `before`, at most `limit` at a time; returns how many. */
export async function deleteOldIdempotencyKeys(sql: Sql, epoch: bigint, before: Date, limit: number): Promise<number> {
  const rows = await sql.query(
    `DELETE FROM idempotency_keys
      WHERE (customer_id, key) IN (SELECT customer_id, key FROM idempotency_keys
                                    WHERE created_at < $2 ORDER BY created_at LIMIT $3)
        AND created_at < $2 AND ${fencedBy("$1")}
     RETURNING key`,
    [epoch, before, limit],
  );
  return rows.length;
}
