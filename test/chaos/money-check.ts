/** After the crashes: what customers were told is true, and what Stripe was paid is in the books, once. */
import { expect } from "vitest";

import { createStripe } from "#billing/stripe.ts";
import type { Mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { balanceOf } from "#ledger/ledger.ts";
import type { Database } from "#platform/database.ts";
import { type StripeStandIn, TEST_SECRET_KEY } from "#test/support/stripe/stand-in.ts";

export interface Told {
  readonly customer: CreatedKey;
  readonly status: number;
  /** Of the answer; null when there was none. */
  readonly requestId: string | null;
  /** Of the envelope of a success. */
  readonly rolloutId: string | null;
  /** To ask the same again. */
  readonly repeat: () => Promise<Told | null>;
}

interface Row {
  readonly id: string;
  readonly status: string;
  readonly charge: number;
  readonly refunded: number;
  readonly delivered: boolean;
}

/** 200: earned, once. An error: refunded or never charged, or finished and to be had at no charge by asking again. */
export async function checkAnswers(db: Database, told: readonly Told[]): Promise<void> {
  for (const one of told) {
    const rows = await db.query<Row>(
      `SELECT id, status, charge_mils::int AS charge, refunded_mils::int AS refunded,
              delivered_at IS NOT NULL AS delivered
         FROM rollouts WHERE customer_id = $1 AND (request_id = $2 OR id = $3)`,
      [one.customer.customer_id, one.requestId, one.rolloutId],
    );
    if (one.status === 200) {
      expect(rows).toMatchObject([{ status: "succeeded", refunded: 0 }]);
      continue;
    }
    expect(one.status).toBeGreaterThanOrEqual(500); // nobody asked for anything wrong, nor for too much
    for (const row of rows) {
      if (row.status !== "succeeded") {
        if (row.status !== "failed") expect(row).toMatchObject({ refunded: row.charge });
        continue;
      }
      // It finished while its gateway had lost the database.
      expect(row.delivered).toBe(false);
      const before = await balanceOf(db, one.customer.customer_id);
      expect(await one.repeat()).toMatchObject({ status: 200 });
      expect(await balanceOf(db, one.customer.customer_id)).toBe(before);
    }
  }
}

/** Every payment is credited once and taken back as far as it was refunded, and the balance is what all that comes to. */
export async function checkTopUps(
  { db, stripe, granted }: { readonly db: Database; readonly stripe: StripeStandIn; readonly granted: Mils },
  customers: readonly CreatedKey[],
): Promise<void> {
  const client = createStripe({ STRIPE_SECRET_KEY: TEST_SECRET_KEY, STRIPE_API_BASE: stripe.url });
  const paid = (await client?.paymentIntents.list({ limit: 100 }))?.data.filter(({ status }) => status === "succeeded");
  expect(paid?.length).toBeGreaterThan(0);
  for (const { id, amount } of paid ?? []) {
    const [row] = await db.query<{ credited: bigint; entries: bigint }>(
      `SELECT credited_mils AS credited, (SELECT count(*) FROM ledger_entries WHERE reference = $1 AND kind = 'credit') AS entries
         FROM payments WHERE id = $1`,
      [id],
    );
    expect({ id, ...row }).toEqual({ id, credited: BigInt(amount) * 100n, entries: 1n });
  }
  for (const { customer_id } of customers) {
    const [row] = await db.query<{ balance: bigint; expected: bigint }>(
      `SELECT (SELECT balance_mils FROM accounts WHERE customer_id = $1 AND account = 'balance') AS balance,
              ($2::bigint
               - (SELECT coalesce(sum(charge_mils - refunded_mils), 0) FROM rollouts WHERE customer_id = $1)
               + (SELECT coalesce(sum(credited_mils - clawed_back_mils), 0) FROM payments p
                    JOIN topups t ON t.id = p.topup_id WHERE t.customer_id = $1))::bigint AS expected`,
      [customer_id, granted],
    );
    expect(row?.balance).toBe(row?.expected);
  }
}
