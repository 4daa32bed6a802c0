/**
 * Money that a payment's provider takes back, and gives back again. A balance does not fall below zero by it: what the
 * balance cannot pay becomes debt, which whatever comes in next pays first (the trigger `ledger_repay_debt`).
 *
 * For one payment, clawed back = Σ(entries 'clawback' on debt) − Σ(entries 'clawback' on balance) with its reference:
 * a repayment appears on both sides and cancels out.
 */
import { ApiError } from "#contract/errors.ts";
import type { Mils } from "#contract/mils.ts";
import type { Sql } from "#platform/database.ts";

export interface Clawback {
  readonly customer_id: string;
  /** Above zero. */
  readonly amount: Mils;
  /** The payment's id. */
  readonly reference: string;
  readonly detail: string;
}

/**
 * FOR UPDATE reads the balance as it is once locked; the functions take a new snapshot and see the same. Both accounts
 * change in one statement, so nobody ever sees one without the other.
 */
const CLAW_BACK = `
  WITH locked AS MATERIALIZED (
    SELECT customer_id, least(balance_mils, $2::bigint) AS from_balance
      FROM accounts WHERE customer_id = $1 AND account = 'balance' FOR UPDATE
  )
  SELECT from_balance, $2::bigint - from_balance AS to_debt,
         CASE WHEN from_balance > 0
              THEN post_ledger_entry(customer_id, 'balance', 'clawback', -from_balance, $3, $4) END AS paid,
         CASE WHEN $2::bigint > from_balance
              THEN post_ledger_entry(customer_id, 'debt', 'clawback', $2::bigint - from_balance, $3, $4) END AS owed
    FROM locked`;

/**
 * Takes what the balance has, up to `amount`; the rest becomes debt. Not idempotent: the caller knows, in the same
 * transaction, how much of the payment it took back before.
 */
export async function clawBack(tx: Sql, c: Clawback): Promise<{ from_balance: Mils; to_debt: Mils }> {
  requirePositive(c);
  const [row] = await tx.query<{ from_balance: Mils; to_debt: Mils }>(CLAW_BACK, [
    c.customer_id,
    c.amount,
    c.reference,
    c.detail,
  ]);
  if (!row) throw new ApiError("not_found", `there is no customer ${c.customer_id}`);
  return { from_balance: row.from_balance, to_debt: row.to_debt };
}

/** Gives back what was clawed back (a dispute won); pays debt first. Not idempotent, as `clawBack`. */
export async function reinstate(tx: Sql, c: Clawback): Promise<void> {
  requirePositive(c);
  const [row] = await tx.query(
    `SELECT post_ledger_entry(customer_id, account, 'clawback', $2::bigint, $3, $4)
       FROM accounts WHERE customer_id = $1 AND account = 'balance'`,
    [c.customer_id, c.amount, c.reference, c.detail],
  );
  if (!row) throw new ApiError("not_found", `there is no customer ${c.customer_id}`);
}

function requirePositive({ amount }: Clawback): void {
  if (amount <= 0n) throw new RangeError(`expected an amount above zero, got ${amount} mils`);
}
