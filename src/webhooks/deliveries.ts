/**
 * What senders do with deliveries: take some that are due, and note what came of each.
 *
 * A claim counts the attempt up and holds the row until its lease ends; a sender that dies leaves it to be claimed again,
 * under the next number. What a sender notes counts only under the number that it claimed, so one that was thought dead
 * and comes back changes nothing but the log. The database's clock alone decides what is due.
 */
import type { CustomerId, DatasetId, DeliveryId, EndpointId, RolloutId } from "#contract/ids.ts";
import type { MessageType } from "#contract/webhooks.ts";
import type { Sql } from "#platform/database.ts";

export interface Claimed {
  readonly id: DeliveryId;
  readonly customer_id: CustomerId;
  readonly endpoint_id: EndpointId | null;
  readonly url: string;
  readonly receiver: string;
  readonly event: MessageType;
  readonly rollout_id: RolloutId | null;
  readonly dataset_id: DatasetId | null;
  /** The number of this attempt. */
  readonly attempt: number;
  /** Of these, how many the schedule of retries counts. */
  readonly counted: number;
  readonly created_at: Date;
}

/** Of deliveries at once: in a claim together with what the sender has in hand. */
export interface Shares {
  /** Of one customer to one receiver, so that a receiver that many customers have is not one customer's alone. */
  readonly perRoute: number;
  /** To one receiver, so that one that hangs does not hold everything. */
  readonly perReceiver: number;
  readonly perCustomer: number;
}

export interface ClaimLimits extends Shares {
  /** Altogether, beside what is in hand. */
  readonly count: number;
  readonly leaseMs: number;
  readonly inHand: readonly Pick<Claimed, "customer_id" | "receiver">[];
  /** `next` of the claim before, to go on with the routes after it; null begins. */
  readonly after: Route | null;
}

export type Route = readonly [customer: string, receiver: string];

/** Looked at in one claim, so that somebody with very many of them cannot make claims slow; the next claim goes on. */
export const ROUTES_PER_CLAIM = 1_000;

/**
 * The recursion jumps along the index from one route, a customer's to a receiver, to the next that has pending messages;
 * of each only the few oldest that are due are read, however many wait. Then everybody gets a first place before anybody
 * gets a second one.
 */
const CLAIM = `
  WITH RECURSIVE routes AS (
    (SELECT customer_id, receiver FROM webhook_deliveries
      WHERE state = 'pending' AND (customer_id, receiver) > ($3::text, $4::text)
      ORDER BY customer_id, receiver LIMIT 1)
    UNION ALL
    SELECT following.* FROM routes r CROSS JOIN LATERAL (
      SELECT d.customer_id, d.receiver FROM webhook_deliveries d
       WHERE d.state = 'pending' AND (d.customer_id, d.receiver) > (r.customer_id, r.receiver)
       ORDER BY d.customer_id, d.receiver LIMIT 1
    ) following
  ),
  looked AS MATERIALIZED (SELECT * FROM routes LIMIT ${ROUTES_PER_CLAIM}),
  in_hand AS MATERIALIZED (SELECT * FROM jsonb_to_recordset($5) AS h (customer_id text, receiver text)),
  free AS MATERIALIZED (
    SELECT l.*, (SELECT count(*) FROM in_hand h WHERE h.customer_id = l.customer_id AND h.receiver = l.receiver) AS route_has,
           (SELECT count(*) FROM in_hand h WHERE h.receiver = l.receiver) AS receiver_has,
           (SELECT count(*) FROM in_hand h WHERE h.customer_id = l.customer_id) AS customer_has
      FROM looked l
  ),
  due AS MATERIALIZED (
    SELECT f.*, d.id, d.next_attempt_at FROM free f CROSS JOIN LATERAL (
      SELECT id, next_attempt_at FROM webhook_deliveries
       WHERE state = 'pending' AND customer_id = f.customer_id AND receiver = f.receiver AND next_attempt_at <= now()
       ORDER BY next_attempt_at LIMIT $6 FOR UPDATE SKIP LOCKED
    ) d
     WHERE f.route_has < $6 AND f.receiver_has < $7 AND f.customer_has < $8
  ),
  of_route AS (
    SELECT *, route_has + row_number() OVER (PARTITION BY customer_id, receiver ORDER BY next_attempt_at, id) AS n
      FROM due
  ),
  of_customer AS (
    SELECT *, customer_has + row_number() OVER (PARTITION BY customer_id ORDER BY n, next_attempt_at, id) AS m
      FROM of_route WHERE n <= $6
  ),
  of_receiver AS (
    SELECT *, receiver_has + row_number() OVER (PARTITION BY receiver ORDER BY m, next_attempt_at, id) AS k
      FROM of_customer WHERE m <= $8
  ),
  picked AS (SELECT id FROM of_receiver WHERE k <= $7 ORDER BY m, k, next_attempt_at, id LIMIT $1),
  claimed AS (
    UPDATE webhook_deliveries d
       SET attempts = attempts + 1, claimed_until = now() + $2 * interval '1 ms',
           next_attempt_at = now() + $2 * interval '1 ms'
      FROM picked WHERE d.id = picked.id
    RETURNING d.id, d.customer_id, d.endpoint_id, d.url, d.receiver, d.event, d.rollout_id, d.dataset_id,
              d.attempts AS attempt, d.attempts - d.uncounted AS counted, d.created_at
  )
  SELECT ended.next, claimed.*
    FROM (SELECT CASE WHEN count(*) = ${ROUTES_PER_CLAIM}
                      THEN (SELECT jsonb_build_array(customer_id, receiver) FROM looked
                             ORDER BY customer_id DESC, receiver DESC LIMIT 1) END AS next
            FROM looked) ended
    LEFT JOIN claimed ON true`;

export interface Claim {
  readonly deliveries: readonly Claimed[];
  /** Null when every route was looked at. */
  readonly next: Route | null;
}

export async function claimDue(sql: Sql, limits: ClaimLimits): Promise<Claim> {
  const [customer, receiver] = limits.after ?? ["", ""];
  const inHand = limits.inHand.map(({ customer_id, receiver }) => ({ customer_id, receiver }));
  const rows = await sql.query<Claimed & { readonly next: Route | null }>(CLAIM, [
    limits.count,
    limits.leaseMs,
    customer,
    receiver,
    JSON.stringify(inHand),
    limits.perRoute,
    limits.perReceiver,
    limits.perCustomer,
  ]);
  const [first] = rows;
  // Without a claimed one there is a row of NULLs beside `next`.
  return { deliveries: rows.filter(({ id }) => id !== null), next: first?.next ?? null };
}

/** What one attempt brought. */
export interface Attempt {
  readonly at: Date;
  readonly duration_ms: number;
  /** What the receiver answered, or why there was no answer. */
  readonly answer:
    | { readonly status: number; readonly excerpt: string }
    | { readonly status: null; readonly error: string };
}

/** What becomes of the delivery after it. */
export type Next =
  | { readonly state: "delivered" }
  | { readonly state: "failed"; readonly reason: string }
  | {
      readonly state: "pending";
      readonly delayMs: number;
      /** Whether the schedule of retries counts this attempt; not one that we broke off. */
      readonly counts: boolean;
    };

/** A resend that was asked for meanwhile goes out whatever came of this one, with all its retries before it. */
const NOTE = `
  UPDATE webhook_deliveries
     SET state = CASE WHEN resend THEN 'pending' ELSE $3 END,
         reason = CASE WHEN resend THEN NULL ELSE $4 END,
         finished_at = CASE WHEN resend OR $3 = 'pending' THEN NULL ELSE now() END,
         next_attempt_at = CASE WHEN resend THEN now() ELSE now() + $5 * interval '1 ms' END,
         uncounted = CASE WHEN resend THEN attempts WHEN $6 THEN uncounted ELSE uncounted + 1 END,
         claimed_until = NULL,
         resend = false
   WHERE id = $1 AND attempts = $2 AND state = 'pending'
  RETURNING id`;

const LOG = `
  INSERT INTO webhook_attempts (delivery_id, n, at, duration_ms, status, error, excerpt)
  VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING`;

/** Whether this attempt was still the delivery's own; `attempt` is null where nothing was sent. */
export async function noteAttempt(
  tx: Sql,
  { id, attempt: n }: Pick<Claimed, "id" | "attempt">,
  attempt: Attempt | null,
  next: Next,
): Promise<boolean> {
  if (attempt !== null) {
    const { answer } = attempt;
    const [error, excerpt] = answer.status === null ? [answer.error, null] : [null, answer.excerpt];
    await tx.query(LOG, [id, n, attempt.at, attempt.duration_ms, answer.status, error, excerpt]);
  }
  const noted = await tx.query(NOTE, [
    id,
    n,
    next.state,
    next.state === "failed" ? next.reason : null,
    next.state === "pending" ? next.delayMs : 0,
    next.state !== "pending" || next.counts,
  ]);
  return noted.length > 0;
}

/** Ends what waits for an endpoint that nothing is sent to any more. One that a sender has in hand ends when it is noted. */
export async function failPending(sql: Sql, endpointId: EndpointId, reason: string): Promise<void> {
  await sql.query(
    `UPDATE webhook_deliveries SET state = 'failed', reason = $2, finished_at = now()
      WHERE endpoint_id = $1 AND state = 'pending' AND coalesce(claimed_until, now()) <= now()`,
    [endpointId, reason],
  );
}
