/** What Stripe and our books disagree about and nobody may decide by itself: named, each time, until it is gone. */
import { randomBytes } from "node:crypto";

import { afterEach, beforeEach, describe, expect, test } from "vitest";

import { reconcile } from "#billing/reconcile.ts";
import { resolvePayment } from "#billing/resolve.ts";
import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { credit } from "#ledger/ledger.ts";
import { systemClock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import { assertBooksBalance } from "#test/support/ledger.ts";
import { silentLog } from "#test/support/postgres.ts";

import {
  dollars,
  forgetEvents,
  lookAtStripe,
  type LookOptions,
  type PayingGateway,
  startPayingGateway,
} from "./support.ts";

let g: PayingGateway;
let key: CreatedKey;
beforeEach(async () => {
  g = await startPayingGateway();
  key = await g.t.newKey(mils(0));
});
afterEach(async () => {
  await assertBooksBalance(g.t.db);
  await g.stop();
});

const look = (options?: LookOptions) => lookAtStripe(g, options);
const balance = async () => (await g.accounts(key.customer_id)).balance_mils;
const nobodyHeard = () => g.stripe.drop();
const eventsAreGone = () => forgetEvents(g);

describe("what reconciliation reports and does not touch", () => {
  test("money at Stripe that was not credited, until an operator has decided", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key), { amount: 2_600 });
    nobodyHeard();
    const problem = "paid 2600 cents, the top-up is about 2500 cents";
    for (let i = 0; i < 2; i++) {
      expect((await look()).disagreements).toEqual([{ kind: "not_credited", id: payment, message: problem }]);
    }
    expect(await balance()).toBe(0n);
    const decision = { payment_id: payment, credit_to: key.customer_id, operator: "ann", reason: "paid too much" };
    expect(await resolvePayment(g.t.db, decision, randomBytes)).toBe(`credited 26.00 to ${key.customer_id}`);
    expect(await balance()).toBe(dollars(26));
    expect((await look()).disagreements).toEqual([]);
    expect(
      await g.t.db.query(`SELECT operator, action, reason FROM operator_actions WHERE action = 'billing resolve'`),
    ).toEqual([{ operator: "ann", action: "billing resolve", reason: "paid too much" }]);
    await expect(resolvePayment(g.t.db, decision, randomBytes)).rejects.toThrow(/no payment .* with a problem/);
    // From here on it is a payment like any other.
    g.stripe.books.refund(payment, 600);
    await g.stripe.flush(g.endpoint);
    expect(await balance()).toBe(dollars(20));
  });

  test("money that an operator decided not to credit is not credited by a later event either", async () => {
    const session = await g.session(key.api_key);
    const payment = g.stripe.books.pay(session, { currency: "eur" });
    const [paid] = g.stripe.outbox;
    await g.stripe.flush(g.endpoint);
    const decision = { payment_id: payment, operator: "ann", reason: "refunded by hand" };
    await expect(resolvePayment(g.t.db, { ...decision, credit_to: key.customer_id }, randomBytes)).rejects.toThrow(
      /not in US dollars/,
    );
    expect(await resolvePayment(g.t.db, { ...decision, credit_to: null }, randomBytes)).toBe("not credited");
    expect(await g.endpoint(g.stripe.sign({ ...paid, id: "evt_again" }))).toBe(200);
    expect((await look()).disagreements).toEqual([]);
    expect(await balance()).toBe(0n);
  });

  test("a credit for a payment that Stripe does not know", async () => {
    const session = await g.session(key.api_key);
    await g.t.db.transaction(async (tx) => {
      const entry = { customer_id: key.customer_id, amount: dollars(25), reference: "pi_invented", detail: "top-up" };
      await credit(tx, entry);
      await tx.query(
        `INSERT INTO payments (id, topup_id, paid_cents, credited_mils)
         SELECT 'pi_invented', id, 2500, 250000 FROM topups WHERE session_id = $1`,
        [session],
      );
    });
    expect((await look()).disagreements).toEqual([
      {
        kind: "unknown_to_stripe",
        id: "pi_invented",
        message: "we credited $25.0000 for it, and Stripe does not know this payment",
      },
    ]);
  });

  test("refunds of a payment that Stripe does not know, as after a trial with another account", async () => {
    const trial = g.stripe.books.pay(await g.session(key.api_key));
    g.stripe.books.refund(trial, 500);
    await g.stripe.flush(g.endpoint);
    for (const known of [g.stripe.books.payments, g.stripe.books.sessions, g.stripe.books.refunds]) known.clear();
    g.stripe.books.events.length = 0;
    const missed = g.stripe.books.pay(await g.session(key.api_key, 1_000));
    nobodyHeard();
    const { disagreements } = await look();
    expect(new Set(disagreements.map(({ kind, id }) => `${kind} ${id}`))).toEqual(
      new Set([`unknown_to_stripe ${trial}`]),
    );
    expect(missed).not.toBe(trial);
    expect(await balance()).toBe(dollars(30)); // 25 less 5, and the 10 that nobody had told us of
  });

  test("a credit of another amount than Stripe received", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    await g.stripe.flush(g.endpoint);
    for (const session of g.stripe.books.sessions.values()) session.amount_total = 2_400;
    expect((await look()).disagreements).toEqual([
      { kind: "amount_differs", id: payment, message: "we credited $25.0000, Stripe received $24.0000" },
    ]);
  });

  test("a refund that failed here and stands at Stripe", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    const refund = g.stripe.books.refund(payment, 700);
    g.stripe.books.failRefund(refund);
    await g.stripe.flush(g.endpoint);
    Object.assign(g.stripe.books.refunds.get(refund) ?? {}, { status: "succeeded" });
    const message = "we count $0.0000 as refunded, Stripe $7.0000";
    for (const _ of [1, 2]) {
      expect((await look()).disagreements).toEqual([{ kind: "refund_differs", id: payment, message }]);
    }
    expect(await balance()).toBe(dollars(25));
  });

  test("events and objects that cannot be read, while everything else is repaired", async () => {
    const broken = g.stripe.books.pay(await g.session(key.api_key));
    const payment = g.stripe.books.pay(await g.session(key.api_key, 1_000));
    nobodyHeard();
    const [unreadable] = g.stripe.books.events;
    Object.assign(unreadable?.data.object ?? {}, { amount_total: "25" });
    const session = [...g.stripe.books.sessions.values()].find((one) => one.payment_intent === broken);
    Object.assign(session ?? {}, { amount_total: "25" });
    for (const _ of [1, 2]) {
      const { disagreements } = await look();
      expect(disagreements.map(({ kind, id }) => `${kind} ${id}`).sort()).toEqual(
        [`unreadable ${session?.id}`, `unreadable ${unreadable?.id}`].sort(),
      );
    }
    expect(await balance()).toBe(dollars(10));
    expect((await g.payment(payment))?.credited_mils).toBe(100_000n);
    // Read by a newer version of the program, say.
    Object.assign(unreadable?.data.object ?? {}, { amount_total: 2_500 });
    Object.assign(session ?? {}, { amount_total: 2_500 });
    expect((await look()).disagreements).toEqual([]);
    expect(await balance()).toBe(dollars(35));
  });

  test("what the database refuses of one event, while everything else is repaired", async () => {
    const first = g.stripe.books.pay(await g.session(key.api_key));
    g.stripe.books.pay(await g.session(key.api_key, 1_000));
    nobodyHeard();
    const db = g.t.as("scheduler");
    const refusing: Database = {
      ...db,
      transaction: (run) =>
        db.transaction((tx) =>
          run({
            query: async (text, params) => {
              if (text.includes("INSERT INTO payments") && params?.[0] === first) throw new Error("not this one");
              return tx.query(text, params);
            },
          }),
        ),
    };
    const parts = { db: refusing, stripe: g.client, clock: systemClock, log: silentLog };
    const { disagreements } = await reconcile(parts, { days: 30 });
    expect(new Set(disagreements.map(({ kind, message }) => `${kind} ${message}`))).toEqual(
      new Set(["unreadable not this one"]),
    );
    expect(await balance()).toBe(dollars(10));
  });

  test("a dispute that was won here and is lost at Stripe", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    const dispute = g.stripe.books.dispute(payment);
    g.stripe.books.closeDispute(dispute, "won");
    await g.stripe.flush(g.endpoint);
    g.stripe.books.closeDispute(dispute, "lost");
    eventsAreGone();
    expect((await look()).disagreements).toEqual([
      { kind: "dispute_differs", id: payment, message: `${dispute} was won, and Stripe now says lost` },
    ]);
  });

  test("top-ups that never got a session are closed after an hour, and those of before its time are named", async () => {
    g.stripe.misbehave({ path: /sessions$/, method: "POST", when: "before", how: { status: 400 }, times: 2 });
    for (let i = 0; i < 2; i++) expect((await g.topup(key.api_key, { amount_cents: 500 })).status).toBe(503);
    const [fresh, old] = await g.t.db.query<{ id: string }>(`SELECT id FROM topups ORDER BY created_at`);
    expect(await look()).toMatchObject({ repaired: [], disagreements: [] });
    await g.t.db.query(`UPDATE topups SET created_at = now() - interval '2 hours' WHERE id = $1`, [fresh?.id]);
    await g.t.db.query(`UPDATE topups SET created_at = now() - interval '40 days' WHERE id = $1`, [old?.id]);
    const report = await look();
    expect(report.repaired).toEqual([`${fresh?.id}: Stripe made no session for it, closed as failed`]);
    expect(report.disagreements).toMatchObject([{ kind: "no_session", id: old?.id }]);
  });

  test("a session that Stripe made and whose answer we lost is found", async () => {
    g.stripe.misbehave({ path: /sessions$/, method: "POST", when: "after", how: "cut", times: 3 });
    expect((await g.topup(key.api_key, { amount_cents: 500 })).status).toBe(503);
    expect((await look()).repaired).toEqual([expect.stringMatching(/^topup_.*: session found$/)]);
  });
});
