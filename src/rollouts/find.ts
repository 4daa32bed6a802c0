/** Reading rollouts, and noting that one was delivered. */
import type { CustomerId, DatasetId, RolloutId } from "#contract/ids.ts";
import type { RolloutResult } from "#contract/jobs.ts";
import { QUEUE_POSITION_MAX, REDELIVERY_WINDOW_MS } from "#contract/limits.ts";
import type { Sql } from "#platform/database.ts";

import { type Rollout, ROLLOUT_COLUMNS } from "./rollout.ts";

/** Null also when it is another customer's: nobody learns which ids exist. */
export async function findRollout(sql: Sql, id: RolloutId, customerId: CustomerId): Promise<Rollout | null> {
  const [rollout] = await sql.query<Rollout>(
    `SELECT ${ROLLOUT_COLUMNS} FROM rollouts WHERE id = $1 AND customer_id = $2`,
    [id, customerId],
  );
  return rollout ?? null;
}

/**
 * The latest rollout of that payload that is paid and finished, and whose video did not reach the customer who waited for
 * it. What was submitted asynchronously cannot get lost on its way: it is fetched by id.
 */
export async function findUndelivered(
  sql: Sql,
  customerId: CustomerId,
  fingerprint: Buffer,
  k: number,
  now: Date,
): Promise<Rollout | null> {
  const [rollout] = await sql.query<Rollout>(
    `SELECT ${ROLLOUT_COLUMNS} FROM rollouts
      WHERE customer_id = $1 AND fingerprint = $2 AND k = $3 AND finished_at > $4
        AND status = 'succeeded' AND delivered_at IS NULL AND waiter_id IS NOT NULL
      ORDER BY finished_at DESC LIMIT 1`,
    [customerId, fingerprint, k, new Date(now.getTime() - REDELIVERY_WINDOW_MS)],
  );
  return rollout ?? null;
}

/** Whether anything is left to deliver again: a customer whose last mils paid for it may ask without a balance. */
export async function hasUndelivered(sql: Sql, customerId: CustomerId, now: Date): Promise<boolean> {
  const [row] = await sql.query<{ found: boolean }>(
    `SELECT EXISTS (SELECT FROM rollouts WHERE customer_id = $1 AND finished_at > $2
                       AND status = 'succeeded' AND delivered_at IS NULL AND waiter_id IS NOT NULL) AS found`,
    [customerId, new Date(now.getTime() - REDELIVERY_WINDOW_MS)],
  );
  return row?.found ?? false;
}

/** The video reached the customer; the first time counts. */
export async function markDelivered(sql: Sql, id: RolloutId): Promise<void> {
  await sql.query(`UPDATE rollouts SET delivered_at = now() WHERE id = $1 AND delivered_at IS NULL`, [id]);
}

/** Whether there is such a dataset of this customer's, whose rollouts may be listed. */
export async function isOwnDataset(sql: Sql, id: DatasetId, customerId: CustomerId): Promise<boolean> {
  return (await sql.query(`SELECT FROM datasets WHERE id = $1 AND customer_id = $2`, [id, customerId])).length > 0;
}

export interface VideoFiles {
  /** Blob keys in candidate order; none unless it succeeded. */
  readonly keys: readonly string[];
  /** Retention has deleted them. */
  readonly deleted: boolean;
}

/** For signed links, behind which no customer is known. */
export async function findVideoFiles(sql: Sql, id: RolloutId): Promise<VideoFiles> {
  const [rollout] = await sql.query<{ result: RolloutResult | null; deleted: boolean }>(
    `SELECT result, files_deleted_at IS NOT NULL AS deleted FROM rollouts WHERE id = $1`,
    [id],
  );
  return { keys: rollout?.result?.video_keys ?? [], deleted: rollout?.deleted ?? false };
}

/**
 * 1 for the next of its model to be dispatched, at most QUEUE_POSITION_MAX, behind which nobody counts; null when it is not
 * in the backlog any more. Those that somebody waits for count as ahead of all others.
 */
export async function queuePosition(sql: Sql, { id, model }: Pick<Rollout, "id" | "model">): Promise<number | null> {
  const [row] = await sql.query<{ position: number }>(
    // The row's own time is read here, because a Date has no microseconds.
    `WITH own AS (SELECT (lane = 'bulk') AS bulk, created_at, id FROM rollouts WHERE id = $1 AND status = 'queued')
     SELECT least($3, (${countAhead(REALTIME)}) + (${countAhead(BULK)}) + (${countAhead(SCORED)}))::int AS position
       FROM own`,
    [id, model, QUEUE_POSITION_MAX],
  );
  return row?.position ?? null;
}

/** Each reads one part of the index rollouts_backlog, as far as it counts. */
const countAhead = (which: string): string =>
  `SELECT count(*) FROM (SELECT FROM rollouts WHERE model = $2 AND status = 'queued' AND ${which} LIMIT $3) AS ahead`;

// BETWEEN for the same reason as in dispatch.ts.
const REALTIME = `(lane = 'bulk') BETWEEN false AND false AND NOT scored
  AND (created_at, id) <= (SELECT CASE WHEN bulk THEN 'infinity' ELSE created_at END, id FROM own)`;
const BULK_BEFORE = `(SELECT bulk FROM own) AND (lane = 'bulk') BETWEEN true AND true
  AND (created_at, id) <= (SELECT created_at, id FROM own)`;
const BULK = `NOT scored AND ${BULK_BEFORE}`;
const SCORED = `scored AND ${BULK_BEFORE}`;

/** Rollouts in the backlog by model; a model without any is absent. */
export async function countQueued(sql: Sql): Promise<Map<string, number>> {
  const rows = await sql.query<{ model: string; queued: bigint }>(
    `SELECT model, count(*) AS queued FROM rollouts WHERE status = 'queued' GROUP BY model`,
  );
  return new Map(rows.map(({ model, queued }) => [model, Number(queued)]));
}
