/** What an operator does to a customer's money by hand, with who did it and why beside it, in one transaction. */
import { ApiError } from "#contract/errors.ts";
import { type Mils, mils, usdText } from "#contract/mils.ts";
import { adjust } from "#ledger/adjust.ts";
import { balanceOf, credit } from "#ledger/ledger.ts";
import { assertLine, recordAction } from "#ledger/operator-actions.ts";
import type { Database, Sql } from "#platform/database.ts";

export interface ByHand {
  readonly customer_id: string;
  readonly operator: string;
  readonly reason: string;
  /** Of the ledger entry: done once, however often it is asked for with the same one. */
  readonly reference: string;
}

/**
 * Credit without a payment. `credited: false` when that reference was credited before. Throws ApiError: not_found, and
 * invalid_request where the reference stands for something else.
 */
export async function grantCredit(
  db: Database,
  g: ByHand & { /** Above zero. */ readonly amount: Mils },
): Promise<{ credited: boolean; balance_mils: Mils }> {
  assertLine("a reference", g.reference);
  assertLine("a reason", g.reason);
  return await db.transaction(async (tx) => {
    if (await wasDone(tx, "credit", g)) return { credited: false, balance_mils: await balanceOf(tx, g.customer_id) };
    const { customer_id, amount, reference } = g;
    const { balance_mils } = await credit(tx, { customer_id, amount, reference, detail: "credit granted" });
    await recordAction(tx, { ...g, action: "credits grant", details: { amount_mils: Number(amount) } });
    return { credited: true, balance_mils };
  });
}

/**
 * A correction, up or down. `adjusted: false` when that reference was adjusted before. Throws ApiError: not_found,
 * insufficient_credits where the balance would fall below zero, and invalid_request where the reference stands for
 * something else.
 */
export async function adjustBalance(
  db: Database,
  a: ByHand & { /** Signed, not zero. */ readonly amount: Mils },
): Promise<{ adjusted: boolean; balance_mils: Mils }> {
  assertLine("a reference", a.reference);
  assertLine("a reason", a.reason); // it stands in the entry
  return await db.transaction(async (tx) => {
    if (await wasDone(tx, "adjustment", a)) {
      return { adjusted: false, balance_mils: await balanceOf(tx, a.customer_id) };
    }
    const { customer_id, amount, reference, reason } = a;
    const { balance_mils } = await adjust(tx, { customer_id, amount, reference, detail: `adjustment · ${reason}` });
    await recordAction(tx, { ...a, action: "credits adjust", details: { amount_mils: Number(amount) } });
    return { adjusted: true, balance_mils };
  });
}

/** What of that credit or adjustment went to the customer's debt. */
export async function debtRepaidBy(sql: Sql, customerId: string, reference: string): Promise<Mils> {
  const [row] = await sql.query<{ repaid: bigint }>(
    `SELECT coalesce(-sum(amount_mils), 0)::bigint AS repaid FROM ledger_entries
      WHERE customer_id = $1 AND account = 'debt' AND reference = $2`,
    [customerId, reference],
  );
  return mils(row?.repaid ?? 0n);
}

const DONE_AS = { credit: "a credit", adjustment: "an adjustment" } as const;

/** Whether this was done before. Until the transaction ends, nobody else does anything by that reference, to whomever. */
async function wasDone(
  tx: Sql,
  kind: keyof typeof DONE_AS,
  { customer_id, amount, reference }: ByHand & { readonly amount: Mils },
): Promise<boolean> {
  await tx.query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", [`by hand ${reference}`]);
  const [earlier] = await tx.query<{ customer_id: string; kind: keyof typeof DONE_AS; amount_mils: Mils }>(
    `SELECT customer_id, kind, amount_mils FROM ledger_entries
      WHERE reference = $1 AND kind IN ('credit', 'adjustment') AND account = 'balance'`,
    [reference],
  );
  if (!earlier) return false;
  if (earlier.customer_id === customer_id && earlier.kind === kind && earlier.amount_mils === amount) return true;
  throw new ApiError(
    "invalid_request",
    `${reference} stands for ${DONE_AS[earlier.kind]} of $${usdText(earlier.amount_mils)} to ${earlier.customer_id}, ` +
      `not for ${DONE_AS[kind]} of $${usdText(amount)} to ${customer_id}: expected a reference of its own`,
  );
}
