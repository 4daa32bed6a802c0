/**
 * The outbox: who is to be told is written by the transaction that makes it true, one row a receiver, so that a crash
 * neither forgets a message nor tells what never happened. The notifier sends (workers/notifier).
 */
import type { CustomerId, DatasetId, DeliveryId, EndpointId } from "#contract/ids.ts";
import { WEBHOOK_TEST, type WebhookEvent } from "#contract/webhooks.ts";
import type { Sql } from "#platform/database.ts";

/**
 * A CTE for a data-modifying statement. `source` names one with the columns customer_id, event, rollout_id, dataset_id,
 * webhook_url, and to_endpoints: whether the customer's endpoints are told beside the URL that came with the work. Rows
 * are locked after everything else that a statement locks (webhook deliveries are last in the lock order).
 */
export const tellReceivers = (source: string): string => `
  told AS (
    INSERT INTO webhook_deliveries (customer_id, endpoint_id, url, event, rollout_id, dataset_id)
    SELECT customer_id, NULL, webhook_url, event, rollout_id, dataset_id
      FROM ${source} WHERE webhook_url IS NOT NULL
    UNION ALL
    SELECT s.customer_id, e.id, e.url, s.event, s.rollout_id, s.dataset_id
      FROM ${source} s JOIN webhook_endpoints e ON e.customer_id = s.customer_id
     WHERE s.to_endpoints AND e.deleted_at IS NULL AND e.disabled_at IS NULL AND s.event = ANY (e.events)
  )`;

const TELL = `
  WITH happened AS (
    SELECT $1::text AS customer_id, $2::text AS event, NULL::text AS rollout_id, $3::text AS dataset_id,
           $4::text AS webhook_url, true AS to_endpoints
  ), ${tellReceivers("happened")}
  SELECT`;

export interface DatasetNews {
  readonly customer_id: CustomerId;
  readonly event: Extract<WebhookEvent, `dataset.${string}`>;
  readonly dataset_id: DatasetId;
  readonly webhook_url: string | null;
}

/** Inside the transaction that changes the dataset's state. */
export async function tellWebhooks(sql: Sql, news: DatasetNews): Promise<void> {
  await sql.query(TELL, [news.customer_id, news.event, news.dataset_id, news.webhook_url]);
}

/**
 * A test to that endpoint alone, whatever it asked to be told; the delivery's id. Null where it is another customer's,
 * deleted, or disabled.
 */
export async function tellTest(sql: Sql, id: EndpointId, customerId: CustomerId): Promise<DeliveryId | null> {
  const [row] = await sql.query<{ id: DeliveryId }>(
    `INSERT INTO webhook_deliveries (customer_id, endpoint_id, url, event)
     SELECT customer_id, id, url, $3 FROM webhook_endpoints
      WHERE id = $1 AND customer_id = $2 AND deleted_at IS NULL AND disabled_at IS NULL
     RETURNING id`,
    [id, customerId, WEBHOOK_TEST],
  );
  return row?.id ?? null;
}
