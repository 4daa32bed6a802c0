/** What the scheduler that leads does with deliveries: it counts those that wait and deletes old ones. */
import type { Sql } from "#platform/database.ts";
import { fencedBy } from "#rollouts/leader.ts";

export interface WebhookBacklog {
  readonly pending: number;
  /** How long ago the oldest should have been sent, in seconds; 0 when nothing is late. */
  readonly oldest_due_s: number;
}

export async function readBacklog(sql: Sql): Promise<WebhookBacklog> {
  const [row] = await sql.query<WebhookBacklog>(
    `SELECT count(*)::int AS pending,
            coalesce(greatest(extract(epoch FROM now() - min(next_attempt_at)), 0), 0)::float8 AS oldest_due_s
       FROM webhook_deliveries WHERE state = 'pending'`,
  );
  return row ?? { pending: 0, oldest_due_s: 0 };
}

/** Older than `before` and ended, with their attempts; how many. Only in the leader's term. */
export async function deleteOldDeliveries(sql: Sql, epoch: bigint, before: Date, limit: number): Promise<number> {
  const rows = await sql.query(
    `DELETE FROM webhook_deliveries
      WHERE id IN (SELECT id FROM webhook_deliveries WHERE created_at < $2 AND state <> 'pending'
                    ORDER BY created_at LIMIT $3)
        AND state <> 'pending' AND ${fencedBy("$1")}
     RETURNING id`,
    [epoch, before, limit],
  );
  return rows.length;
}

/** Endpoints that were deleted before `before`, once the log has nothing of them any more. Only in the leader's term. */
export async function deleteOldEndpoints(sql: Sql, epoch: bigint, before: Date): Promise<void> {
  await sql.query(
    `DELETE FROM webhook_endpoints e
      WHERE deleted_at < $2 AND ${fencedBy("$1")}
        AND NOT EXISTS (SELECT FROM webhook_deliveries d WHERE d.endpoint_id = e.id)`,
    [epoch, before],
  );
}
