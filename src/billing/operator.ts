/** What an operator does to a customer's money by hand, with who did it and why beside it, in one transaction. */
import { ApiError } from "#contract/errors.ts";
import { type Mils, mils } from "#contract/mils.ts";
import { adjust } from "#ledger/adjust.ts";
import { balanceOf, credit } from "#ledger/ledger.ts";
import type { Database, Sql } from "#platform/database.ts";

export interface OperatorAction {
  readonly operator: string;
  /** The command, such as "credits adjust". */
  readonly action: string;
  /** Null where it concerns everybody. */
  readonly customer_id: string | null;
  readonly reason: string;
  /** Of the ledger entry that it made; null where it made none. Unique. */
  readonly reference: string | null;
  readonly details: Readonly<Record<string, string | number | null>>;
}

const LINE_CHARS_MAX = 300;

/** Reasons and references stand in statements and records: one line of text. Throws ApiError(invalid_request). */
export function assertLine(what: string, text: string): void {
  if (text.trim() !== "" && text.length <= LINE_CHARS_MAX && !/\p{Cc}/u.test(text)) return;
  throw new ApiError("invalid_request", `expected ${what} of one line, 1 to ${LINE_CHARS_MAX} characters`);
}

/** `tx`, because a deed without its record, or a record without its deed, must not be. */
export async function recordAction(tx: Sql, a: OperatorAction): Promise<void> {
  assertLine("a reason", a.reason);
  await tx.query(
    `INSERT INTO operator_actions (operator, action, customer_id, reason, reference, details)
     VALUES ($1, $2, $3, $4, $5, $6)`,
    [a.operator, a.action, a.customer_id, a.reason, a.reference, a.details],
  );
}

export interface ByHand {
  readonly customer_id: string;
  readonly operator: string;
  readonly reason: string;
  /** Of the ledger entry: done once, however often it is asked for with the same one. */
  readonly reference: string;
}

/** Credit without a payment. `credited: false` when that reference was credited before. */
export async function grantCredit(
  db: Database,
  g: ByHand & { /** Above zero. */ readonly amount: Mils },
): Promise<{ credited: boolean; balance_mils: Mils }> {
  assertLine("a reference", g.reference);
  const entry = { customer_id: g.customer_id, amount: g.amount, reference: g.reference, detail: "credit granted" };
  const granted = await db.transaction(async (tx) => {
    await lockBalance(tx, g.customer_id);
    const [earlier] = await tx.query(
      `SELECT FROM ledger_entries WHERE reference = $1 AND kind = 'credit' AND account = 'balance'`,
      [g.reference],
    );
    if (earlier) return null;
    const credited = await credit(tx, entry);
    await recordAction(tx, { ...g, action: "credits grant", details: { amount_mils: Number(g.amount) } });
    return credited;
  });
  // Credited before: this adds nothing, and fails where it was another amount or customer.
  return granted ?? (await credit(db, entry));
}

/**
 * A correction, up or down. `adjusted: false` when that reference was adjusted before. Throws ApiError(insufficient_credits)
 * where the balance would fall below zero, and RangeError where the reference stands for another adjustment.
 */
export async function adjustBalance(
  db: Database,
  a: ByHand & { /** Signed, not zero. */ readonly amount: Mils },
): Promise<{ adjusted: boolean; balance_mils: Mils }> {
  assertLine("a reference", a.reference);
  return await db.transaction(async (tx) => {
    await lockBalance(tx, a.customer_id);
    const [earlier] = await tx.query<{ customer_id: string; amount_mils: string }>(
      `SELECT customer_id, details ->> 'amount_mils' AS amount_mils FROM operator_actions WHERE reference = $1`,
      [a.reference],
    );
    if (earlier) {
      if (earlier.customer_id !== a.customer_id || mils(earlier.amount_mils) !== a.amount) {
        throw new RangeError(
          `${a.reference} was an adjustment of ${earlier.customer_id} by ${earlier.amount_mils} mils, ` +
            `not of ${a.customer_id} by ${a.amount}: expected a reference of its own`,
        );
      }
      return { adjusted: false, balance_mils: await balanceOf(tx, a.customer_id) };
    }
    await recordAction(tx, { ...a, action: "credits adjust", details: { amount_mils: Number(a.amount) } });
    const { balance_mils } = await adjust(tx, {
      customer_id: a.customer_id,
      amount: a.amount,
      reference: a.reference,
      detail: `adjustment · ${a.reason}`,
    });
    return { adjusted: true, balance_mils };
  });
}

/** Makes those who move this balance by hand wait for each other. */
async function lockBalance(tx: Sql, customerId: string): Promise<void> {
  const [locked] = await tx.query(
    `SELECT FROM accounts WHERE customer_id = $1 AND account = 'balance' FOR NO KEY UPDATE`,
    [customerId],
  );
  if (!locked) throw new ApiError("not_found", `there is no customer ${customerId}`);
}
