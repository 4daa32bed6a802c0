/** What an operator decides about money that Stripe holds and that could not be credited by itself. */
import { ApiError } from "#contract/errors.ts";
import { newTopupId, type RandomBytes } from "#contract/ids.ts";
import { recordAction } from "#ledger/operator-actions.ts";
import type { Database } from "#platform/database.ts";

import { lockPayment, moveLedger } from "./move-ledger.ts";

export interface Resolution {
  readonly payment_id: string;
  /** Who gets what was paid; null when nobody does (it was refunded at Stripe, or is not ours). */
  readonly credit_to: string | null;
  readonly operator: string;
  readonly reason: string;
}

/**
 * Ends a payment's problem, with who decided and why on record. A payment that is credited by it behaves like any other
 * from then on: what Stripe takes back is clawed back. Gives what came of it.
 * Throws ApiError(not_found) where there is no such problem, ApiError(invalid_request) for a payment in another currency.
 */
export function resolvePayment(db: Database, r: Resolution, random: RandomBytes): Promise<string> {
  return db.transaction(async (tx) => {
    const [known] = await tx.query<{ problem: string | null }>(`SELECT problem FROM payments WHERE id = $1`, [
      r.payment_id,
    ]);
    const payment = known ? await lockPayment(tx, r.payment_id) : null;
    if (!payment || payment.problem === null) {
      throw new ApiError("not_found", `there is no payment ${r.payment_id} with a problem`);
    }
    let outcome = "not credited";
    if (r.credit_to !== null) {
      if (payment.paid_cents === null) {
        throw new ApiError(
          "invalid_request",
          `${payment.id} is not in US dollars (${payment.problem}): refund it at Stripe, or use credits grant`,
        );
      }
      const topup_id = newTopupId(random);
      await tx.query(
        `INSERT INTO topups (id, customer_id, request_id, amount_cents, state) VALUES ($1, $2, $3, $4, 'paid')`,
        [topup_id, r.credit_to, `operator ${r.operator}`, payment.paid_cents],
      );
      await tx.query(`UPDATE payments SET topup_id = $2 WHERE id = $1`, [payment.id, topup_id]);
      ({ outcome } = await moveLedger(
        tx,
        { ...payment, topup_id, problem: null, resolution: null },
        { eventId: null, said: null },
      ));
    }
    await tx.query(`UPDATE payments SET problem = NULL, resolution = $2 WHERE id = $1`, [payment.id, r.reason]);
    await recordAction(tx, {
      operator: r.operator,
      action: "billing resolve",
      customer_id: r.credit_to,
      reason: r.reason,
      reference: null,
      details: { payment: payment.id, problem: payment.problem, outcome },
    });
    return outcome;
  });
}
