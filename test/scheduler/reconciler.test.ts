import { randomBytes } from "node:crypto";

import { Registry } from "prom-client";
import { afterEach, beforeEach, expect, test } from "vitest";

import { startCheckout } from "#billing/checkout.ts";
import { daysToCompare, lastReconciled, recordReconciled } from "#billing/reconciled.ts";
import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { balanceOf } from "#ledger/ledger.ts";
import { systemClock } from "#platform/clock.ts";
import type { Service } from "#platform/lifecycle.ts";
import { createSchedulerMetrics } from "#scheduler/metrics.ts";
import { startReconciler } from "#scheduler/reconciler.ts";
import { assertBooksBalance, newCustomer } from "#test/support/ledger.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";
import { startStripeStandIn, type StripeStandIn } from "#test/support/stripe/stand-in.ts";

import { stripeClient } from "../billing/support.ts";

const POLL = { timeout: 15_000, interval: 20 };

let database: TestDatabase;
let stripe: StripeStandIn;
let key: CreatedKey;
let reconciler: Service | null = null;
beforeEach(async () => {
  database = await createTestDatabase();
  stripe = await startStripeStandIn();
  key = await newCustomer(database.db, mils(0));
});
afterEach(async () => {
  await reconciler?.stop();
  reconciler = null;
  await assertBooksBalance(database.db);
  await stripe.stop();
  await database.drop();
});

/** With the rights of a scheduler. */
function start(registry: Registry): void {
  reconciler = startReconciler({
    db: database.as("scheduler"),
    stripe: stripeClient(stripe.url),
    clock: systemClock,
    log: silentLog,
    metrics: createSchedulerMetrics(registry),
  });
}

async function payUnheard(): Promise<string> {
  const { session_id } = await startCheckout(
    { db: database.db, stripe: stripeClient(stripe.url), random: randomBytes },
    {
      customer_id: key.customer_id,
      request_id: "req_1",
      amount_cents: 2_500,
      idempotency_key: null,
      public_url: "http://dream.test",
    },
  );
  const payment = stripe.books.pay(session_id);
  stripe.drop();
  return payment;
}

const ago = (days: number) => new Date(Date.now() - days * 86_400_000);
const shown = async (registry: Registry, line: RegExp) => line.exec(await registry.metrics())?.[1];

test("the leader finds what no webhook brought, at its start, and says when it looked and what it moved", async () => {
  const registry = new Registry();
  const payment = await payUnheard();
  stripe.books.refund(payment, 400);
  stripe.books.dispute(payment, { amount: 600 });
  start(registry);
  await expect.poll(() => shown(registry, /^dream_money_reconciled_at_seconds (\d{10})/m), POLL).toBeDefined();
  expect(await balanceOf(database.db, key.customer_id)).toBe(mils(150_000));
  expect(await shown(registry, /^dream_money_mils_total\{kind="credit"\} (\d+)/m)).toBe("250000");
  expect(await shown(registry, /^dream_money_mils_total\{kind="clawback"\} (\d+)/m)).toBe("100000");
});

test("a round that fails does not count as a look, and nothing is half done", async () => {
  const registry = new Registry();
  await payUnheard();
  stripe.misbehave({ path: /sessions$/, method: "GET", when: "before", how: { status: 500 }, times: 9 });
  start(registry);
  await expect
    .poll(() => stripe.requests.filter(({ path }) => path.endsWith("/events")).length, POLL)
    .toBeGreaterThan(0);
  await expect.poll(() => balanceOf(database.db, key.customer_id), POLL).toBe(mils(250_000));
  await reconciler?.stop();
  expect(await shown(registry, /^dream_money_reconciled_at_seconds (\d{10})/m)).toBeUndefined();
});

test("what came of the last look outlives its scheduler, and the next one looks back over all that it missed", async () => {
  const first = new Registry();
  const payment = await payUnheard();
  const [session] = stripe.books.sessions.values();
  start(first);
  await expect.poll(() => lastReconciled(database.db), POLL).not.toBeNull();
  await reconciler?.stop();
  expect((await lastReconciled(database.db))?.disagreements).toEqual({});
  // Ten days later, of which the first seven saw no scheduler: a refund that nobody told of.
  await recordReconciled(database.db, { at: ago(10), disagreements: {} });
  await database.db.query(`UPDATE stripe_reconciled SET at = $1`, [ago(10)]);
  stripe.books.refund(payment, 400);
  for (const event of stripe.books.events) Object.assign(event, { created: Math.floor(ago(7).getTime() / 1000) });
  Object.assign(session ?? {}, { amount_total: 2_400 });
  stripe.drop();
  const second = new Registry();
  start(second);
  const at = /^dream_money_reconciled_at_seconds (\d{10})/m;
  await expect.poll(() => shown(second, at), POLL).toBeDefined();
  expect(await balanceOf(database.db, key.customer_id)).toBe(mils(210_000));
  const line = /^dream_money_reconcile_disagreements\{kind="amount_differs"\} (\d+)$/m;
  expect(await shown(second, line)).toBe("1");
  expect((await lastReconciled(database.db))?.disagreements).toEqual({ amount_differs: 1 });
});

test("says that it is expected to look, so that never having done so is noticed, until it stops", async () => {
  const registry = new Registry();
  stripe.misbehave({ path: /events$/, when: "before", how: { status: 500 }, times: 9 });
  start(registry);
  const expected = /^dream_money_reconcile_expected (\d)$/m;
  expect(await shown(registry, expected)).toBe("1");
  await expect.poll(() => stripe.requests.length, POLL).toBeGreaterThan(0);
  await reconciler?.stop();
  expect(await shown(registry, expected)).toBe("0");
  expect(await lastReconciled(database.db)).toBeNull();
});

test.for<[string, number | null, number, number]>([
  ["that never was", null, 0, 30],
  ["of a moment ago", 0, 0, 3],
  ["of five days ago", 5, 0, 5 + 1 / 24],
  ["of months ago", 90, 0, 30],
  ["after which something disagrees", 0, 1, 30],
])("after a look %s the next one goes back as far as it must", ([, days, disagreements, expected]) => {
  const now = 1_790_000_000_000;
  const counts = disagreements > 0 ? { amount_differs: disagreements } : {};
  const last = days === null ? null : { at: new Date(now - days * 86_400_000), disagreements: counts };
  expect(daysToCompare(now, last)).toBeCloseTo(expected, 6);
});

test("stops soon, also while Stripe does not answer", async () => {
  stripe.misbehave({ path: /events$/, when: "before", how: "silence", times: 9 });
  start(new Registry());
  await expect.poll(() => stripe.requests.length, POLL).toBeGreaterThan(0);
  const startedMs = performance.now();
  await reconciler?.stop();
  expect(performance.now() - startedMs).toBeLessThan(4_000);
});
