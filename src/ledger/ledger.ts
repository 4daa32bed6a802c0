/** Credits, balances and statements. Debits are in rollouts/accept.ts, refunds in rollouts/settle.ts. */
import { ApiError } from "#contract/errors.ts";
import type { CustomerId } from "#contract/ids.ts";
import type { Mils } from "#contract/mils.ts";
import { type Sql, violates } from "#platform/database.ts";

import { postEntry } from "./post.ts";

/** A row of a statement. On the wire an adjustment or clawback shows as credit or debit, by the sign of its amount. */
export interface LedgerEntry {
  readonly seq: bigint;
  readonly kind: "debit" | "credit" | "refund" | "adjustment" | "clawback";
  /** Signed. */
  readonly amount_mils: Mils;
  readonly balance_after_mils: Mils;
  readonly rollout_id: string | null;
  /** The request id of a debit or refund, the payment's id of a credit. */
  readonly reference: string;
  readonly detail: string;
  readonly created_at: Date;
}

export interface Credit {
  readonly customer_id: string;
  /** Above zero. */
  readonly amount: Mils;
  /** The payment's id: the same reference is credited once, however often and by whomever it is reported. */
  readonly reference: string;
  readonly detail: string;
}

const CREDIT = `
  WITH credit AS (
    SELECT $1::text AS customer_id, 'credit'::text AS kind, $2::bigint AS amount_mils, NULL::text AS rollout_id,
           $3::text AS reference, $4::text AS detail
  ), ${postEntry("credit")}
  SELECT balance_mils FROM moved`;

/**
 * `credited: false` when that reference was credited before; the balance is the present one in both cases.
 * A repeated reference fails its statement, so a caller's transaction cannot go on after one.
 */
export async function credit(sql: Sql, c: Credit): Promise<{ credited: boolean; balance_mils: Mils }> {
  if (c.amount <= 0n) throw new RangeError(`a credit must be above zero, got ${c.amount} mils`);
  try {
    const [row] = await sql.query<{ balance_mils: Mils }>(CREDIT, [c.customer_id, c.amount, c.reference, c.detail]);
    if (!row) throw new ApiError("not_found", `there is no customer ${c.customer_id}`);
    return { credited: true, balance_mils: row.balance_mils };
  } catch (error) {
    if (!violates(error, "ledger_once_per_payment")) throw error;
    await assertSameCredit(sql, c, error);
    return { credited: false, balance_mils: await balanceOf(sql, c.customer_id) };
  }
}

/** A payment reported twice with another customer or amount is no repetition: somebody is wrong, and must hear of it. */
async function assertSameCredit(sql: Sql, c: Credit, cause: unknown): Promise<void> {
  const [earlier] = await sql.query<{ customer_id: string; amount_mils: Mils }>(
    `SELECT customer_id, amount_mils FROM ledger_entries
      WHERE reference = $1 AND kind = 'credit' AND account = 'balance'`,
    [c.reference],
  );
  if (earlier?.customer_id === c.customer_id && earlier.amount_mils === c.amount) return;
  throw new Error(
    `${c.reference} was credited before as ${earlier?.amount_mils} mils to ${earlier?.customer_id}, ` +
      `not ${c.amount} mils to ${c.customer_id}`,
    { cause },
  );
}

export async function balanceOf(sql: Sql, customerId: string): Promise<Mils> {
  const [row] = await sql.query<{ balance_mils: Mils }>(
    `SELECT balance_mils FROM accounts WHERE customer_id = $1 AND account = 'balance'`,
    [customerId],
  );
  if (!row) throw new ApiError("not_found", `there is no customer ${customerId}`);
  return row.balance_mils;
}

/** Newest first. */
export function transactionsOf(sql: Sql, customerId: CustomerId, limit: number): Promise<LedgerEntry[]> {
  return sql.query<LedgerEntry>(
    `SELECT seq, kind, amount_mils, balance_after_mils, rollout_id, reference, detail, created_at
       FROM ledger_entries WHERE customer_id = $1 AND account = 'balance' ORDER BY seq DESC LIMIT $2`,
    [customerId, limit],
  );
}
