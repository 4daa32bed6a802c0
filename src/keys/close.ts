/** The end of a customer: no key works and none can be made. Refunds, disputes and the statement go on. */
import { ApiError } from "#contract/errors.ts";
import type { Sql } from "#platform/database.ts";

/**
 * Closes the customer and revokes every key; `tx` because both or neither. From the moment it commits no debit does: a
 * debit holds its key's row, and a new key waits for the customer's. Closing again changes nothing.
 */
export async function closeCustomer(tx: Sql, customerId: string): Promise<{ closed_at: Date; keys_revoked: number }> {
  // The customer before the keys, as whoever makes a key does.
  const [customer] = await tx.query<{ closed_at: Date }>(
    `UPDATE customers SET closed_at = coalesce(closed_at, now()) WHERE id = $1 RETURNING closed_at`,
    [customerId],
  );
  if (!customer) throw new ApiError("not_found", `there is no customer ${customerId}`);
  const revoked = await tx.query(
    `UPDATE api_keys SET revoked_at = now() WHERE customer_id = $1 AND revoked_at IS NULL RETURNING id`,
    [customerId],
  );
  return { closed_at: customer.closed_at, keys_revoked: revoked.length };
}

/** Lets a closed customer have keys again; those that closing revoked stay revoked. */
export async function reopenCustomer(tx: Sql, customerId: string): Promise<void> {
  const [customer] = await tx.query(`UPDATE customers SET closed_at = NULL WHERE id = $1 RETURNING id`, [customerId]);
  if (!customer) throw new ApiError("not_found", `there is no customer ${customerId}`);
}
