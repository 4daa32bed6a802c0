/** The log of deliveries as their customer reads it, and sending one of them again. */
import { ApiError } from "#contract/errors.ts";
import type { CustomerId, DatasetId, DeliveryId, EndpointId, RolloutId } from "#contract/ids.ts";
import type { DeliveryState, MessageType } from "#contract/webhooks.ts";
import type { Sql } from "#platform/database.ts";

export interface Delivery {
  readonly id: DeliveryId;
  readonly endpoint_id: EndpointId | null;
  readonly url: string;
  readonly event: MessageType;
  readonly rollout_id: RolloutId | null;
  readonly dataset_id: DatasetId | null;
  readonly state: DeliveryState;
  readonly reason: string | null;
  readonly attempts: number;
  /** What the last attempt that has ended brought: the receiver's answer, or why there was none. */
  readonly last_status: number | null;
  readonly last_error: string | null;
  readonly next_attempt_at: Date;
  /** Whether a sender has it in hand. */
  readonly sending: boolean;
  readonly created_at: Date;
  readonly finished_at: Date | null;
}

export interface LoggedAttempt {
  readonly n: number;
  readonly at: Date;
  readonly duration_ms: number;
  readonly status: number | null;
  readonly error: string | null;
  readonly excerpt: string | null;
}

const COLUMNS = `
  d.id, d.endpoint_id, coalesce(e.url, d.url) AS url, d.event, d.rollout_id, d.dataset_id, d.state, d.reason, d.attempts,
  l.status AS last_status, l.error AS last_error, d.next_attempt_at, coalesce(d.claimed_until > now(), false) AS sending, d.created_at, d.finished_at`;
const DELIVERIES = `webhook_deliveries d LEFT JOIN webhook_endpoints e ON e.id = d.endpoint_id`;
const WITH_LAST = `${DELIVERIES}
  LEFT JOIN LATERAL (SELECT status, error FROM webhook_attempts WHERE delivery_id = d.id ORDER BY n DESC LIMIT 1) l ON true`;

export interface DeliveryFilter {
  readonly endpoint: EndpointId | null;
  readonly rollout: RolloutId | null;
  readonly dataset: DatasetId | null;
  readonly state: DeliveryState | null;
  /** What comes after this one of the same customer. */
  readonly after: DeliveryId | null;
  readonly limit: number;
}

/** Newest first. Conditions that are not asked for are left out of the text: each filter has an index of its own. */
export function listDeliveries(sql: Sql, customerId: CustomerId, filter: DeliveryFilter): Promise<Delivery[]> {
  const values: unknown[] = [customerId, filter.limit];
  const where = ["d.customer_id = $1"];
  const require = (condition: (parameter: string) => string, value: string | null): void => {
    if (value !== null) where.push(condition(`$${values.push(value)}`));
  };
  require((p) => `d.endpoint_id = ${p}`, filter.endpoint);
  require((p) => `d.rollout_id = ${p}`, filter.rollout);
  require((p) => `d.dataset_id = ${p}`, filter.dataset);
  if (filter.state !== null) where.push(`d.state = '${filter.state}'`); // one of three words; an index is for one of them
  require((p) =>
    `(d.created_at, d.id) < (SELECT created_at, id FROM webhook_deliveries WHERE id = ${p} AND customer_id = $1)`, filter.after);
  return sql.query<Delivery>(
    `SELECT ${COLUMNS} FROM ${WITH_LAST} WHERE ${where.join(" AND ")} ORDER BY d.created_at DESC, d.id DESC LIMIT $2`,
    values,
  );
}

/** Null also when it is another customer's. */
export async function findDelivery(sql: Sql, id: DeliveryId, customerId: CustomerId): Promise<Delivery | null> {
  const [row] = await sql.query<Delivery>(
    `SELECT ${COLUMNS} FROM ${WITH_LAST} WHERE d.id = $1 AND d.customer_id = $2`,
    [id, customerId],
  );
  return row ?? null;
}

/** Oldest first. One that a crash of ours cut off has a number and no entry. */
export function attemptsOf(sql: Sql, id: DeliveryId): Promise<LoggedAttempt[]> {
  return sql.query<LoggedAttempt>(
    `SELECT n, at, duration_ms, status, error, excerpt FROM webhook_attempts WHERE delivery_id = $1 ORDER BY n`,
    [id],
  );
}

/**
 * Makes it due now, and where it had ended with all its retries before it again. One that a sender has in hand is left to
 * it and goes out once more afterwards. Null as in findDelivery; throws ApiError(wrong_state) where nothing is sent to its
 * endpoint any more.
 */
export async function resendDelivery(sql: Sql, id: DeliveryId, customerId: CustomerId): Promise<Delivery | null> {
  const [found] = await sql.query<{ deleted_at: Date | null; disabled_at: Date | null }>(
    `SELECT e.deleted_at, e.disabled_at FROM ${DELIVERIES} WHERE d.id = $1 AND d.customer_id = $2`,
    [id, customerId],
  );
  if (!found) return null;
  if (found.deleted_at !== null) throw new ApiError("wrong_state", "its webhook was deleted: nothing is sent to it");
  if (found.disabled_at !== null) {
    throw new ApiError("wrong_state", 'its webhook is disabled: PATCH /v1/webhooks/{id} {"enabled": true} first');
  }
  await sql.query(
    `UPDATE webhook_deliveries
        SET resend = coalesce(claimed_until > now(), false),
            next_attempt_at = CASE WHEN claimed_until > now() THEN next_attempt_at ELSE now() END,
            uncounted = CASE WHEN state = 'pending' THEN uncounted ELSE attempts END,
            state = 'pending', reason = NULL, finished_at = NULL
      WHERE id = $1`,
    [id],
  );
  return findDelivery(sql, id, customerId);
}
