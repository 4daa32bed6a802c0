/** Webhooks get lost; what Stripe holds and what we credited agree again after one look, or are reported exactly. */
import { randomBytes } from "node:crypto";

import { afterEach, beforeEach, describe, expect, test } from "vitest";

import { reconcile } from "#billing/reconcile.ts";
import { resolvePayment } from "#billing/resolve.ts";
import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { credit } from "#ledger/ledger.ts";
import { systemClock } from "#platform/clock.ts";
import { assertBooksBalance } from "#test/support/ledger.ts";
import { silentLog } from "#test/support/postgres.ts";

import { dollars, type PayingGateway, startPayingGateway, stripeClient } from "./support.ts";

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

const look = (options: { dryRun?: boolean; days?: number } = {}) =>
  reconcile(
    { db: g.t.as("scheduler"), stripe: g.client, clock: systemClock, log: silentLog },
    { days: 30, ...options },
  );
const balance = async () => (await g.accounts(key.customer_id)).balance_mils;
const nobodyHeard = () => g.stripe.drop();
/** Stripe forgets its events after 30 days; the objects stay. */
const eventsAreGone = () => {
  nobodyHeard();
  g.stripe.books.events.length = 0;
};

describe("reconciliation", () => {
  test("finds nothing where every webhook arrived", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    g.stripe.books.refund(payment, 500);
    g.stripe.books.closeDispute(g.stripe.books.dispute(payment, { amount: 300 }), "won");
    g.stripe.books.expire(await g.session(key.api_key));
    await g.stripe.flush(g.endpoint);
    const before = await balance();
    const report = await look();
    expect(report).toMatchObject({ missed_events: 0, repaired: [], disagreements: [] });
    expect(report.looked_at).toEqual({ events: 7, sessions: 2, refunds: 1, disputes: 1, credits: 1 });
    expect(await balance()).toBe(before);
  });

  test("credits a payment whose webhook was lost, under the event that told of it", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    nobodyHeard();
    const report = await look();
    expect(report.missed_events).toBe(1);
    expect(report.repaired).toEqual([`${payment}: top-up paid, credited 25.00 to ${key.customer_id}`]);
    expect(report.disagreements).toEqual([]);
    expect(await balance()).toBe(dollars(25));
    const [row] = await g.t.db.query(`SELECT credited_by_event FROM payments WHERE id = $1`, [payment]);
    expect(row).toEqual({ credited_by_event: g.stripe.books.events[0]?.id });
    expect((await look()).repaired).toEqual([]);
  });

  test("credits a payment whose event is gone, from the sessions", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    eventsAreGone();
    expect((await look()).repaired).toEqual([`${payment}: top-up paid, credited 25.00 to ${key.customer_id}`]);
    expect(await balance()).toBe(dollars(25));
  });

  test("takes back what was refunded and disputed unheard, from events or without them", async () => {
    for (const lose of [nobodyHeard, eventsAreGone]) {
      const payment = g.stripe.books.pay(await g.session(key.api_key));
      await g.stripe.flush(g.endpoint);
      const before = await balance();
      g.stripe.books.refund(payment, 300);
      g.stripe.books.refund(payment, 200);
      g.stripe.books.dispute(payment, { amount: 1_000 });
      lose();
      const { repaired, disagreements } = await look();
      expect(repaired.length).toBeGreaterThanOrEqual(2);
      expect(disagreements).toEqual([]);
      expect(await balance()).toBe(before - dollars(15));
    }
  });

  test("hears of a dispute's end long after its events are gone, however old it is", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    const dispute = g.stripe.books.dispute(payment);
    await g.stripe.flush(g.endpoint);
    expect(await balance()).toBe(0n);
    g.stripe.books.closeDispute(dispute, "won");
    eventsAreGone();
    Object.assign(g.stripe.books.disputes.get(dispute) ?? {}, { created: 1_600_000_000 });
    expect((await look()).repaired).toEqual([`${payment}: gave back 25.00`]);
    expect(await balance()).toBe(dollars(25));
  });

  test("notes sessions that expired unheard", async () => {
    const session = await g.session(key.api_key);
    g.stripe.books.expire(session);
    eventsAreGone();
    expect((await look()).repaired).toEqual([expect.stringMatching(/^topup_.*: top-up expired$/)]);
    expect((await look()).repaired).toEqual([]);
  });

  test("only says what it would do in a dry run", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    nobodyHeard();
    const report = await look({ dryRun: true });
    expect(report.repaired).toEqual([`${payment}: top-up paid, credited 25.00 to ${key.customer_id}`]);
    expect(await balance()).toBe(0n);
    expect(await g.t.db.query(`SELECT id FROM payments`)).toEqual([]);
    expect(await g.t.db.query(`SELECT id FROM stripe_events`)).toEqual([]);
  });

  test("runs twice at once, and beside the webhooks it replaces, without crediting twice", async () => {
    for (let i = 0; i < 4; i++) g.stripe.books.pay(await g.session(key.api_key, 1_000));
    await Promise.all([look(), look(), g.stripe.flush(g.endpoint), look()]);
    expect(await balance()).toBe(dollars(40));
  });

  test("reads lists of any length", async () => {
    for (let i = 0; i < 130; i++) {
      g.stripe.books.createSession({
        amount: 500,
        currency: "usd",
        customer: null,
        client_reference_id: null,
        metadata: {},
        payment_metadata: {},
      });
    }
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    for (let i = 0; i < 120; i++) {
      g.stripe.books.expire([...g.stripe.books.sessions.values()].find(({ status }) => status === "open")?.id ?? "");
    }
    nobodyHeard();
    const report = await look();
    expect(report.looked_at).toMatchObject({ events: 121, sessions: 131 });
    expect(report.missed_events).toBe(121);
    expect(report.repaired).toEqual([`${payment}: top-up paid, credited 25.00 to ${key.customer_id}`]);
  });

  test("says so when Stripe cannot be asked, and nothing is changed", async () => {
    g.stripe.books.pay(await g.session(key.api_key));
    nobodyHeard();
    g.stripe.misbehave({ path: /events$/, when: "before", how: { status: 500 }, times: 9 });
    await expect(look()).rejects.toThrow(/Something went wrong at Stripe/);
    expect(await balance()).toBe(0n);
  });

  test("stops where it is told to", async () => {
    const signal = AbortSignal.abort(new Error("stopped"));
    const parts = { db: g.t.as("scheduler"), stripe: g.client, clock: systemClock, log: silentLog, signal };
    g.stripe.books.pay(await g.session(key.api_key));
    await expect(reconcile(parts, { days: 30 })).rejects.toThrow("stopped");
  });
});

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

  test("a credit of another amount than Stripe received", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    await g.stripe.flush(g.endpoint);
    for (const session of g.stripe.books.sessions.values()) session.amount_total = 2_400;
    expect((await look()).disagreements).toEqual([
      { kind: "amount_differs", id: payment, message: "we credited $25.0000, Stripe received $24.0000" },
    ]);
  });

  test("a refund that failed after it was taken back", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    const refund = g.stripe.books.refund(payment, 700);
    await g.stripe.flush(g.endpoint);
    g.stripe.books.failRefund(refund);
    expect((await look()).disagreements).toEqual([
      { kind: "refund_differs", id: payment, message: "we count $7.0000 as refunded, Stripe $0.0000: a refund failed" },
    ]);
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

test("uses a client that answers within a bound", async () => {
  const silent = stripeClient("http://127.0.0.1:9");
  const parts = { db: g.t.as("scheduler"), stripe: silent, clock: systemClock, log: silentLog };
  await expect(reconcile(parts, { days: 1 })).rejects.toThrow(/connection to Stripe/);
});
