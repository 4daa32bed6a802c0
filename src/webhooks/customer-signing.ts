/** The secret that signs webhooks to the `webhook_url` of a rollout or dataset: one a customer. */
import type { CustomerId } from "#contract/ids.ts";
import type { Sql } from "#platform/database.ts";

import type { Generation } from "./secrets.ts";

export async function customerSigning(sql: Sql, customerId: CustomerId): Promise<Generation> {
  const [row] = await sql.query<Generation>(
    `SELECT generation, rotated_at FROM webhook_signing WHERE customer_id = $1`,
    [customerId],
  );
  return row ?? { generation: 1, rotated_at: null };
}

/** A new secret; the one before signs, too, for a day. */
export async function rotateCustomerSigning(sql: Sql, customerId: CustomerId, now: Date): Promise<Generation> {
  const [row] = await sql.query<Generation>(
    `INSERT INTO webhook_signing AS w (customer_id, generation, rotated_at) VALUES ($1, 2, $2)
     ON CONFLICT (customer_id) DO UPDATE SET generation = w.generation + 1, rotated_at = $2
     RETURNING generation, rotated_at`,
    [customerId, now],
  );
  if (!row) throw new Error("an upsert without a condition returns its row");
  return row;
}
