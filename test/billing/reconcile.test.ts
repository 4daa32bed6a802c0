/** Webhooks get lost; what Stripe holds and what we credited agree again after one look, or are reported exactly. */
import { afterEach, beforeEach, describe, expect, test } from "vitest";

import { reconcile } from "#billing/reconcile.ts";
import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
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
  stripeClient,
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
    expect(report.looked_at).toEqual({ events: 8, sessions: 2, refunds: 1, disputes: 1, credits: 1 });
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

  test("gives back a refund that failed unheard, from events or without them, however old it is", async () => {
    for (const lose of [nobodyHeard, eventsAreGone]) {
      const payment = g.stripe.books.pay(await g.session(key.api_key));
      const refund = g.stripe.books.refund(payment, 700);
      await g.stripe.flush(g.endpoint);
      const before = await balance();
      g.stripe.books.failRefund(refund);
      lose();
      Object.assign(g.stripe.books.refunds.get(refund) ?? {}, { created: 1_600_000_000 });
      expect(await look()).toMatchObject({ repaired: [`${payment}: gave back 7.00`], disagreements: [] });
      expect(await balance()).toBe(before + dollars(7));
      expect(await look()).toMatchObject({ repaired: [], disagreements: [] });
    }
  });

  test("costs no transaction for what other products sell", async () => {
    const made = Array.from({ length: 12 }, () =>
      g.stripe.books.createSession({
        amount: 900,
        currency: "eur",
        customer: "cus_of_another_product",
        client_reference_id: "order-7",
        metadata: {},
        payment_metadata: {},
      }),
    );
    for (const { id } of made) g.stripe.books.pay(id);
    eventsAreGone();
    let transactions = 0;
    const db = g.t.as("scheduler");
    const counting: Database = {
      ...db,
      transaction: (run) => {
        transactions += 1;
        return db.transaction(run);
      },
    };
    const parts = { db: counting, stripe: g.client, clock: systemClock, log: silentLog };
    expect(await reconcile(parts, { days: 30 })).toMatchObject({ looked_at: { sessions: 12 }, disagreements: [] });
    expect(transactions).toBe(0);
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

test("uses a client that answers within a bound", async () => {
  const silent = stripeClient("http://127.0.0.1:9");
  const parts = { db: g.t.as("scheduler"), stripe: silent, clock: systemClock, log: silentLog };
  await expect(reconcile(parts, { days: 1 })).rejects.toThrow(/connection to Stripe/);
});
