/**
 * Gateways say that they live. Both sides of the comparison are the database's clock, so that a machine whose clock is
 * off does not lose its customers' rollouts. A gateway renews its lease before it accepts its first rollout.
 */
import type { RolloutId } from "#contract/ids.ts";
import type { Sql } from "#platform/database.ts";

export async function renewLease(sql: Sql, gatewayId: string): Promise<void> {
  await sql.query(
    `INSERT INTO gateway_leases (id, seen_at) VALUES ($1, now()) ON CONFLICT (id) DO UPDATE SET seen_at = now()`,
    [gatewayId],
  );
}

/** Of a gateway that stops and has answered everyone. */
export async function dropLease(sql: Sql, gatewayId: string): Promise<void> {
  await sql.query(`DELETE FROM gateway_leases WHERE id = $1`, [gatewayId]);
}

/** Unfinished rollouts whose client waited at a gateway that has not been seen for `leaseMs`, or has gone. */
export async function readAbandoned(sql: Sql, leaseMs: number, limit: number): Promise<RolloutId[]> {
  const rows = await sql.query<{ id: RolloutId }>(
    `SELECT id FROM rollouts r
      WHERE status IN ('queued', 'dispatched') AND waiter_id IS NOT NULL
        AND NOT EXISTS (SELECT FROM gateway_leases l
                         WHERE l.id = r.waiter_id AND l.seen_at > now() - $1::float8 * interval '1 ms')
      ORDER BY created_at LIMIT $2`,
    [leaseMs, limit],
  );
  return rows.map(({ id }) => id);
}

/** Forgets gateways that have not been seen for `ageMs`; to `readAbandoned` they are gone either way. */
export async function deleteDeadLeases(sql: Sql, ageMs: number): Promise<void> {
  await sql.query(`DELETE FROM gateway_leases WHERE seen_at < now() - $1::float8 * interval '1 ms'`, [ageMs]);
}
