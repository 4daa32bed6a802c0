/** Corrections by an operator, up or down. The reason and the operator's name are kept beside it, in operator_actions. */
import { ApiError } from "#contract/errors.ts";
import { type Mils, usdText } from "#contract/mils.ts";
import type { Sql } from "#platform/database.ts";

import { balanceOf } from "./ledger.ts";
import { postEntry } from "./post.ts";

export interface Adjustment {
  readonly customer_id: string;
  /** Signed, not zero. */
  readonly amount: Mils;
  readonly reference: string;
  readonly detail: string;
}

const ADJUST = `
  WITH adjustment AS (
    SELECT $1::text AS customer_id, 'adjustment'::text AS kind, $2::bigint AS amount_mils, NULL::text AS rollout_id,
           $3::text AS reference, $4::text AS detail
  ), ${postEntry("adjustment")}
  SELECT balance_mils FROM moved`;

/**
 * The balance afterwards, debt repaid: whoever owes keeps nothing of an adjustment up to the debt. Throws ApiError
 * not_found, and insufficient_credits where the balance would fall below zero (nothing is taken then). Not idempotent.
 */
export async function adjust(tx: Sql, a: Adjustment): Promise<{ balance_mils: Mils }> {
  if (a.amount === 0n) throw new RangeError("an adjustment must not be zero");
  const [moved] = await tx.query(ADJUST, [a.customer_id, a.amount, a.reference, a.detail]);
  const balance = await balanceOf(tx, a.customer_id);
  if (!moved) throw tooMuch(a, balance);
  return { balance_mils: balance };
}

function tooMuch({ customer_id, amount }: Adjustment, balance: Mils): ApiError {
  const [requested_mils, balance_mils] = [-Number(amount), Number(balance)];
  const message = `${customer_id} has $${usdText(balance)}: an adjustment by $${usdText(amount)} would leave less than nothing`;
  return new ApiError("insufficient_credits", message, { detail: { message, balance_mils, requested_mils } });
}
