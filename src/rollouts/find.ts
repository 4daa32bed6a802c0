/** Reading rollouts, and noting that one was delivered. */
import type { CustomerId, DatasetId, RolloutId } from "#contract/ids.ts";
import type { RolloutResult } from "#contract/jobs.ts";
import { QUEUE_POSITION_MAX, REDELIVERY_WINDOW_MS } from "#contract/limits.ts";
import type { Sql } from "#platform/database.ts";

import { firstOf, headsOf, LINES } from "./backlog-sql.ts";
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
 * Where it stands in the order of scheduler/dispatch/fair.ts, if all rollouts were of one length and nobody had been given
 * anything yet: an estimate, right but for a rollout of each customer where they are. 1 for the next of its model, at most
 * QUEUE_POSITION_MAX, behind which nobody counts, and which it also is where as many customers wait: their order would take a
 * look at each. Null when it is not in the backlog any more. Those that somebody waits for count as ahead of all others.
 */
export async function queuePosition(sql: Sql, { id, model }: Pick<Rollout, "id" | "model">): Promise<number | null> {
  // The row's own time is read here, because a Date has no microseconds. Of the others only those are read that are ahead,
  // and one more of each customer.
  const [row] = await sql.query<{ position: number }>(POSITION, [
    model,
    id,
    QUEUE_POSITION_MAX,
    LINES.realtime,
    LINES.bulk,
  ]);
  return row?.position ?? null;
}

const MODEL = "$1";
const lines = "(SELECT unnest(lines) FROM own)";
const BEFORE_OWN = firstOf({
  model: MODEL,
  lines,
  customer: "own.customer_id",
  limit: "$3::int",
  condition: "(r.created_at, r.id) < (own.created_at, own.id)",
});
/** So many of another customer go before it, by their weights, and the next of them if it is older. */
const OF_ANOTHER = firstOf({
  model: MODEL,
  lines,
  customer: "o.customer_id",
  limit: "least($3, b.rollouts * o.weight / b.weight + 1)",
  columns: "r.created_at, r.id",
});
const WAITED_FOR = firstOf({
  model: MODEL,
  lines: "(SELECT unnest($4::text[]) FROM own WHERE bulk)",
  limit: "$3::int",
});
const POSITION = `
  WITH RECURSIVE own AS MATERIALIZED (
    SELECT r.customer_id, r.created_at, r.id, c.dispatch_weight AS weight, r.lane = 'bulk' AS bulk,
           CASE WHEN r.lane = 'bulk' THEN $5::text[] ELSE $4::text[] END AS lines
      FROM rollouts r JOIN customers c ON c.id = r.customer_id WHERE r.id = $2 AND r.status = 'queued'
  ),
  before AS MATERIALIZED (
    SELECT own.*, (SELECT count(*) FROM (${BEFORE_OWN}) AS own_before) AS rollouts FROM own
  ),
  ${headsOf({ model: MODEL, lines })},
  looked_at AS MATERIALIZED (SELECT customer_id FROM heads WHERE id IS NOT NULL LIMIT $3),
  others AS MATERIALIZED (
    SELECT DISTINCT c.id AS customer_id, c.dispatch_weight AS weight
      FROM looked_at JOIN customers c ON c.id = looked_at.customer_id
  ),
  ahead AS (
    SELECT count(*) AS rollouts FROM (
      SELECT FROM before b JOIN others o ON o.customer_id <> b.customer_id CROSS JOIN LATERAL (
        SELECT created_at, id, row_number() OVER (ORDER BY created_at, id) - 1 AS earlier FROM (${OF_ANOTHER}) AS first
      ) r
       WHERE r.earlier * b.weight < b.rollouts * o.weight
          OR (r.earlier * b.weight = b.rollouts * o.weight AND (r.created_at, r.id) < (b.created_at, b.id))
       LIMIT $3) AS others_ahead
  ),
  waited_for AS (
    SELECT count(*) AS rollouts FROM (${WAITED_FOR}) AS realtime
  )
  SELECT CASE WHEN b.rollouts < $3 AND (SELECT count(*) < $3 FROM looked_at)
              THEN least($3, 1 + b.rollouts + (SELECT rollouts FROM ahead) + (SELECT rollouts FROM waited_for))
              ELSE $3 END::int AS position
    FROM before b`;

/** Rollouts in the backlog by model; a model without any is absent. */
export async function countQueued(sql: Sql): Promise<Map<string, number>> {
  const rows = await sql.query<{ model: string; queued: bigint }>(
    `SELECT model, count(*) AS queued FROM rollouts WHERE status = 'queued' GROUP BY model`,
  );
  return new Map(rows.map(({ model, queued }) => [model, Number(queued)]));
}
