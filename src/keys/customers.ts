/** Customers: whom keys and balances belong to. Known by id (`cus_…`) or by an e-mail address that an operator named. */
import { ApiError } from "#contract/errors.ts";
import { type CustomerId, newCustomerId, type RandomBytes } from "#contract/ids.ts";
import { type Sql, violates } from "#platform/database.ts";

const CUSTOMER_ID = /^cus_[a-z0-9_]{1,60}$/;
const EMAIL = /^[^\s@]{1,64}@[^\s@]{1,190}$/;

/**
 * The one spelling of an address, for what is stored and for every look-up. Not PostgreSQL's lower(): what that does to
 * letters beyond ASCII depends on the database's locale.
 */
export const emailSpelling = (address: string): string => address.toLowerCase();

/** As listings show it; "" for a customer without one. */
export function addressOf({
  email,
  signup_email,
}: {
  readonly email: string | null;
  readonly signup_email: string | null;
}) {
  return email ?? (signup_email === null ? "" : `(unverified) ${signup_email}`);
}

/** Finds the customer, or makes one with an empty balance; `tx` because it takes more than one statement. */
export async function ensureCustomer(
  tx: Sql,
  customer: string,
  random: RandomBytes,
): Promise<{ id: CustomerId; created: boolean }> {
  const email = EMAIL.test(customer) ? emailSpelling(customer) : null;
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
    await openAccounts(tx, id);
    return { id, created: true };
  }
  const found = await findCustomer(tx, customer);
  if (found === null) throw new Error(`customer ${customer} neither created nor found`);
  return { id: found, created: false };
}

/**
 * A customer who signed up: always a new one. Nobody checked the address, so it identifies nobody; it stands beside the
 * customer for invoices and for an operator who asks about it (confirmEmail).
 */
export async function addSignedUpCustomer(tx: Sql, address: string, random: RandomBytes): Promise<CustomerId> {
  const id = newCustomerId(random);
  await tx.query(`INSERT INTO customers (id, signup_email) VALUES ($1, $2)`, [id, emailSpelling(address)]);
  await openAccounts(tx, id);
  return id;
}

async function openAccounts(tx: Sql, id: CustomerId): Promise<void> {
  await tx.query(`INSERT INTO accounts (customer_id, account) VALUES ($1, 'balance'), ($1, 'debt')`, [id]);
}

/** By id or by an address that an operator named or confirmed; null when there is none. */
export async function findCustomer(sql: Sql, customer: string): Promise<CustomerId | null> {
  const [row] = await sql.query<{ id: CustomerId }>(`SELECT id FROM customers WHERE id = $1 OR email = $2`, [
    customer,
    emailSpelling(customer),
  ]);
  return row?.id ?? null;
}

/** Those who signed up with that address, which nobody has confirmed; the newest few. */
export async function signedUpWith(sql: Sql, address: string): Promise<CustomerId[]> {
  const rows = await sql.query<{ id: CustomerId }>(
    `SELECT id FROM customers WHERE signup_email = $1 ORDER BY created_at DESC, id LIMIT 5`,
    [emailSpelling(address)],
  );
  return rows.map(({ id }) => id);
}

/**
 * The address that a customer signed up with becomes one that names it: for an operator who knows that it is theirs.
 * Throws ApiError: not_found, invalid_request (nothing to confirm, or the address names another customer).
 */
export async function confirmEmail(tx: Sql, customerId: string): Promise<{ readonly email: string }> {
  const [before] = await tx.query<{ signup_email: string | null }>(
    `SELECT signup_email FROM customers WHERE id = $1 FOR NO KEY UPDATE`,
    [customerId],
  );
  if (!before) throw new ApiError("not_found", `there is no customer ${customerId}`);
  const email = before.signup_email;
  if (email === null) throw new ApiError("invalid_request", `${customerId} has no address to confirm`);
  try {
    await tx.query(`UPDATE customers SET email = signup_email, signup_email = NULL WHERE id = $1`, [customerId]);
  } catch (error) {
    if (!violates(error, "customers_email_key")) throw error;
    throw new ApiError("invalid_request", `${email} names another customer already`, { cause: error });
  }
  return { email };
}
