/** `dream-engine billing …` as an operator runs it. */
import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, expect, test, vi } from "vitest";

import { startCheckout } from "#billing/checkout.ts";
import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { balanceOf } from "#ledger/ledger.ts";

import { stripeClient } from "../billing/support.ts";
import { assertBooksBalance, newCustomer } from "../support/ledger.ts";
import { createTestDatabase, type TestDatabase } from "../support/postgres.ts";
import { startStripeStandIn, type StripeStandIn, TEST_SECRET_KEY } from "../support/stripe/stand-in.ts";
import { type Ran, run } from "./command.ts";

/** A command is a process, and a busy machine takes seconds to start one. */
vi.setConfig({ testTimeout: 90_000 });

let database: TestDatabase;
let stripe: StripeStandIn;
let key: CreatedKey;
beforeAll(async () => {
  database = await createTestDatabase();
  stripe = await startStripeStandIn();
  key = await newCustomer(database.db, mils(0));
});
afterAll(async () => {
  await assertBooksBalance(database.db);
  await stripe.stop();
  await database.drop();
});

const cli = (args: readonly string[], env: Record<string, string> = {}): Promise<Ran> =>
  run(["billing", ...args], {
    DATABASE_URL: database.url,
    STRIPE_SECRET_KEY: TEST_SECRET_KEY,
    STRIPE_API_BASE: stripe.url,
    ...env,
  });

async function pay(options: { amount?: number } = {}): Promise<string> {
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
  return stripe.books.pay(session_id, options);
}

test("reconcile says what it would repair, then repairs it, then finds nothing", async () => {
  const payment = await pay();
  const line = `${payment}: top-up paid, credited 25.00 to ${key.customer_id}`;
  const dry = await cli(["reconcile", "--dry-run"]);
  expect([dry.code, dry.stdout]).toEqual([0, expect.stringContaining(`would repair  ${line}`)]);
  expect(await balanceOf(database.db, key.customer_id)).toBe(0n);
  const wet = await cli(["reconcile", "--days", "7"]);
  expect([wet.code, wet.stdout]).toEqual([0, expect.stringContaining(`repaired  ${line}`)]);
  expect(await balanceOf(database.db, key.customer_id)).toBe(250_000n);
  const again = await cli(["reconcile", "--json"]);
  expect(JSON.parse(again.stdout)).toMatchObject({ missed_events: 0, repaired: [], disagreements: [] });
  expect((await cli(["topups", "--customer", key.customer_id])).stdout).toMatch(/paid +pi_\S+ +25\.0000 +0\.0000/);
});

test("reconcile ends with 1 while something disagrees, until an operator resolves it", async () => {
  const payment = await pay({ amount: 3_000 });
  const found = await cli(["reconcile"]);
  expect(found.code).toBe(1);
  expect(found.stdout).toContain(`not_credited  ${payment}: paid 3000 cents, the top-up is about 2500 cents`);
  const resolved = await cli([
    "resolve",
    payment,
    "--reason",
    "meant it",
    "--credit-to",
    key.customer_id,
    "--operator",
    "ann",
  ]);
  expect([resolved.code, resolved.stdout]).toEqual([0, `${payment}: credited 30.00 to ${key.customer_id}.\n`]);
  expect((await cli(["reconcile"])).code).toBe(0);
  expect((await cli(["resolve", payment, "--reason", "once more"])).code).not.toBe(0);
});

test("reconcile says what to set, what it takes, and that Stripe cannot be asked, without a stack or a secret", async () => {
  const unset = await run(["billing", "reconcile"], { DATABASE_URL: database.url });
  expect([unset.code, unset.stderr]).toEqual([1, expect.stringContaining("set STRIPE_SECRET_KEY")]);
  const days = await cli(["reconcile", "--days", "31"]);
  expect([days.code, days.stderr]).toEqual([1, expect.stringContaining("expected 1 to 30")]);
  const refused = await cli(["reconcile"], { STRIPE_SECRET_KEY: "sk_test_some_other_key_of_ours" });
  expect(refused.code).toBe(1);
  expect(refused.stderr).toContain("Stripe could not be asked");
  expect(refused.stderr).not.toMatch(/some_other_key|\n +at /);
});
