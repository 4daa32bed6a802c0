/** Customers: whom keys and balances belong to. Known by id (`cus_…`) or by e-mail address. */
import { ApiError } from "#contract/errors.ts";
import { type CustomerId, newCustomerId, type RandomBytes } from "#contract/ids.ts";
import type { Sql } from "#platform/database.ts";

const CUSTOMER_ID = /^cus_[a-z0-9_]{1,60}$/;
const EMAIL = /^[^\s@]{1,64}@[^\s@]{1,190}$/;

/** Finds the customer, or makes one with an empty balance; `tx` because it takes more than one statement. */
export async function ensureCustomer(
  tx: Sql,
  customer: string,
  random: RandomBytes,
): Promise<{ id: CustomerId; created: boolean }> {
  const email = EMAIL.test(customer) ? customer.toLowerCase() : null;
  if (email === null && !CUSTOMER_ID.test(customer)) {
    throw new ApiError(
      "invalid_request",
      `expected a customer id (cus_…) or an e-mail address, got ${JSON.stringify(customer)}`,
    );
  }
  const id = email === null ? (customer as CustomerId) : newCustomerId(random); // the pattern was checked above
  const [created] = await tx.query(
    `INSERT INTO customers (id, email) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING id`,
    [id, email],
  );
  if (created) {
    await tx.query(`INSERT INTO accounts (customer_id, account) VALUES ($1, 'balance'), ($1, 'debt')`, [id]);
    return { id, created: true };
  }
  const found = await findCustomer(tx, customer);
  if (found === null) throw new Error(`customer ${customer} neither created nor found`);
  return { id: found, created: false };
}

/** By id or e-mail address; null when there is none. */
export async function findCustomer(sql: Sql, customer: string): Promise<CustomerId | null> {
  const [row] = await sql.query<{ id: CustomerId }>(`SELECT id FROM customers WHERE id = $1 OR email = lower($1)`, [
    customer,
  ]);
  return row?.id ?? null;
}
