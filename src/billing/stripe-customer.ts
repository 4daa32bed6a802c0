/** Our customers at Stripe: one each, made when it is first needed. */
import { ApiError } from "#contract/errors.ts";
import type { Sql } from "#platform/database.ts";

import { createOnce, paymentsUnavailable, type Stripe } from "./stripe.ts";

/**
 * The customer's id at Stripe. Safe to call at once and again: Stripe answers the same idempotency key with the same
 * customer, and the first id to be stored stays. Call it outside of a transaction, because it waits for Stripe.
 * `attempt` names what needs the customer (a top-up): where Stripe keeps a failure under the customer's own key, or the
 * e-mail has changed since, each such attempt has another key.
 * Throws ApiError(payments_unavailable), ApiError(not_found).
 */
export async function ensureStripeCustomer(
  sql: Sql,
  stripe: Stripe,
  customerId: string,
  email: string | null,
  attempt = "2",
): Promise<string> {
  const known = await stripeCustomerOf(sql, customerId);
  if (known !== null) return known;
  const key = `customer-${customerId}`;
  const made = await createCustomer(stripe, customerId, email, [key, `${key}-${attempt}`]);
  return storeStripeCustomer(sql, customerId, null, made);
}

/**
 * For a stored id that Stripe does not know: it was deleted there, or belongs to the test mode that this database was
 * tried with. Throws ApiError(payments_unavailable).
 */
export async function replaceStripeCustomer(
  sql: Sql,
  stripe: Stripe,
  customerId: string,
  email: string | null,
  missing: string,
  attempt = "2",
): Promise<string> {
  const known = await stripeCustomerOf(sql, customerId);
  if (known !== null && known !== missing) return known;
  const key = `customer-${customerId}-after-${missing}`;
  const made = await createCustomer(stripe, customerId, email, [key, `${key}-${attempt}`]);
  return storeStripeCustomer(sql, customerId, missing, made);
}

async function createCustomer(
  stripe: Stripe,
  customerId: string,
  email: string | null,
  keys: readonly [first: string, second: string],
): Promise<string> {
  try {
    // A second customer at Stripe that nobody uses does no harm.
    const { id } = await createOnce(keys, (options) =>
      stripe.customers.create({ metadata: { customer_id: customerId }, ...(email === null ? {} : { email }) }, options),
    );
    return id;
  } catch (error) {
    throw paymentsUnavailable(error);
  }
}

async function stripeCustomerOf(sql: Sql, customerId: string): Promise<string | null> {
  const [row] = await sql.query<{ stripe_customer_id: string | null }>(
    `SELECT stripe_customer_id FROM customers WHERE id = $1`,
    [customerId],
  );
  if (!row) throw new ApiError("not_found", `there is no customer ${customerId}`);
  return row.stripe_customer_id;
}

async function storeStripeCustomer(sql: Sql, customerId: string, before: string | null, made: string): Promise<string> {
  await sql.query(
    `UPDATE customers SET stripe_customer_id = $2 WHERE id = $1 AND stripe_customer_id IS NOT DISTINCT FROM $3::text`,
    [customerId, made, before],
  );
  return (await stripeCustomerOf(sql, customerId)) ?? made;
}
