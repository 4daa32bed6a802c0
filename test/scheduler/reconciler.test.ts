import { randomBytes } from "node:crypto";

import { Registry } from "prom-client";
import { afterEach, beforeEach, expect, test } from "vitest";

import { startCheckout } from "#billing/checkout.ts";
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

test("stops soon, also while Stripe does not answer", async () => {
  stripe.misbehave({ path: /events$/, when: "before", how: "silence", times: 9 });
  start(new Registry());
  await expect.poll(() => stripe.requests.length, POLL).toBeGreaterThan(0);
  const startedMs = performance.now();
  await reconciler?.stop();
  expect(performance.now() - startedMs).toBeLessThan(4_000);
});
