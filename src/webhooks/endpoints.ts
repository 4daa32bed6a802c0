/**
 * A customer's endpoints: where events are told beside the URLs that come with the work. Creating holds the customer's
 * row, so that two at once cannot both be the last that is allowed.
 */
import { ApiError } from "#contract/errors.ts";
import { type CustomerId, type EndpointId, newEndpointId, type RandomBytes } from "#contract/ids.ts";
import { WEBHOOK_ENDPOINTS_MAX } from "#contract/limits.ts";
import type { WebhookEvent } from "#contract/webhooks.ts";
import { lockOpenCustomer } from "#keys/mint.ts";
import type { Database, Sql } from "#platform/database.ts";

import { failPending } from "./deliveries.ts";
import type { Generation } from "./secrets.ts";

export interface Endpoint {
  readonly id: EndpointId;
  readonly customer_id: CustomerId;
  readonly url: string;
  readonly description: string | null;
  readonly events: readonly WebhookEvent[];
  readonly generation: number;
  readonly rotated_at: Date | null;
  readonly disabled_at: Date | null;
  readonly disabled_reason: string | null;
  readonly created_at: Date;
}

export interface NewEndpoint {
  readonly url: string;
  readonly events: readonly WebhookEvent[];
  readonly description: string | null;
}

export type EndpointChange = Partial<NewEndpoint & { readonly enabled: boolean }>;

const COLUMNS = `
  id, customer_id, url, description, events, generation, rotated_at, disabled_at, disabled_reason, created_at`;
const OWN = `id = $1 AND customer_id = $2 AND deleted_at IS NULL`;

/** Throws ApiError(too_many_webhooks). The URL has been checked (checkOutboundUrl). */
export function createEndpoint(
  db: Database,
  customerId: CustomerId,
  { url, events, description }: NewEndpoint,
  random: RandomBytes,
): Promise<Endpoint> {
  return db.transaction(async (tx) => {
    await lockOpenCustomer(tx, customerId);
    const [row] = await tx.query<Endpoint>(
      `INSERT INTO webhook_endpoints (id, customer_id, url, description, events)
       SELECT $1, $2, $3, $4, $5
        WHERE (SELECT count(*) FROM webhook_endpoints WHERE customer_id = $2 AND deleted_at IS NULL) < $6
       RETURNING ${COLUMNS}`,
      [newEndpointId(random), customerId, url, description, events, WEBHOOK_ENDPOINTS_MAX],
    );
    if (row) return row;
    throw new ApiError(
      "too_many_webhooks",
      `a customer may have ${WEBHOOK_ENDPOINTS_MAX} webhooks; delete one with DELETE /v1/webhooks/{id} first`,
    );
  });
}

/** Oldest first; a customer has few. */
export function endpointsOf(sql: Sql, customerId: CustomerId): Promise<Endpoint[]> {
  return sql.query<Endpoint>(
    `SELECT ${COLUMNS} FROM webhook_endpoints WHERE customer_id = $1 AND deleted_at IS NULL ORDER BY created_at, id`,
    [customerId],
  );
}

/** Null also when it is another customer's, or deleted. */
export async function findEndpoint(sql: Sql, id: EndpointId, customerId: CustomerId): Promise<Endpoint | null> {
  const [row] = await sql.query<Endpoint>(`SELECT ${COLUMNS} FROM webhook_endpoints WHERE ${OWN}`, [id, customerId]);
  return row ?? null;
}

/**
 * What is absent stays as it is. Nothing is sent to one that is disabled, and what waits for it fails. Null as in
 * findEndpoint.
 */
export function changeEndpoint(
  db: Database,
  id: EndpointId,
  customerId: CustomerId,
  { url, events, description, enabled }: EndpointChange,
): Promise<Endpoint | null> {
  return db.transaction(async (tx) => {
    const [row] = await tx.query<Endpoint>(
      `UPDATE webhook_endpoints
          SET url = coalesce($3, url),
              events = coalesce($4, events),
              description = CASE WHEN $5 THEN $6 ELSE description END,
              disabled_at = CASE $7::boolean WHEN true THEN NULL WHEN false THEN coalesce(disabled_at, now())
                                             ELSE disabled_at END,
              disabled_reason = CASE $7::boolean WHEN true THEN NULL WHEN false THEN coalesce(disabled_reason, 'by its owner')
                                                 ELSE disabled_reason END
        WHERE ${OWN}
       RETURNING ${COLUMNS}`,
      [id, customerId, url ?? null, events ?? null, description !== undefined, description ?? null, enabled ?? null],
    );
    if (row && enabled === false) await failPending(tx, id, DISABLED);
    return row ?? null;
  });
}

const DISABLED = "its webhook was disabled";
const DELETED = "its webhook was deleted";

/** From now on nothing is sent to it, and what waits for it fails. Whether there was one. */
export function deleteEndpoint(db: Database, id: EndpointId, customerId: CustomerId): Promise<boolean> {
  return db.transaction(async (tx) => {
    const deleted = await tx.query(`UPDATE webhook_endpoints SET deleted_at = now() WHERE ${OWN} RETURNING id`, [
      id,
      customerId,
    ]);
    if (deleted.length > 0) await failPending(tx, id, DELETED);
    return deleted.length > 0;
  });
}

/** Its receiver wants nothing more; unless it was given another URL meanwhile. */
export async function disableGone(tx: Sql, id: EndpointId, url: string): Promise<void> {
  const disabled = await tx.query(
    `UPDATE webhook_endpoints SET disabled_at = now(), disabled_reason = 'its receiver answered 410 Gone'
      WHERE id = $1 AND url = $2 AND disabled_at IS NULL RETURNING id`,
    [id, url],
  );
  if (disabled.length > 0) await failPending(tx, id, DISABLED);
}

/** What a sender needs of it; text is why nothing is sent to it. */
export async function endpointToSend(
  sql: Sql,
  id: EndpointId,
): Promise<(Generation & { readonly url: string }) | string> {
  const [row] = await sql.query<Generation & { url: string; deleted: boolean; disabled: boolean }>(
    `SELECT url, generation, rotated_at, deleted_at IS NOT NULL AS deleted, disabled_at IS NOT NULL AS disabled
       FROM webhook_endpoints WHERE id = $1`,
    [id],
  );
  if (!row || row.deleted) return DELETED;
  return row.disabled ? DISABLED : row;
}

/** Whosever it is, deleted or not: what a message to it tells of it. */
export async function readEndpoint(sql: Sql, id: EndpointId): Promise<Endpoint | null> {
  const [row] = await sql.query<Endpoint>(`SELECT ${COLUMNS} FROM webhook_endpoints WHERE id = $1`, [id]);
  return row ?? null;
}

/** A new secret; the one before signs, too, for a day. Null as in findEndpoint. */
export async function rotateEndpoint(
  sql: Sql,
  id: EndpointId,
  customerId: CustomerId,
  now: Date,
): Promise<Endpoint | null> {
  const [row] = await sql.query<Endpoint>(
    `UPDATE webhook_endpoints SET generation = generation + 1, rotated_at = $3 WHERE ${OWN} RETURNING ${COLUMNS}`,
    [id, customerId, now],
  );
  return row ?? null;
}
