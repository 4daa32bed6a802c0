/** Asking for a payment: what is refused, what Stripe is asked, and what is left when Stripe misbehaves. */
import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";

import { startCheckout } from "#billing/checkout.ts";
import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { type GatewayOverrides, startTestGateway } from "#test/gateway/support/test-gateway.ts";
import { field } from "#test/support/stripe/form.ts";
import { TEST_SECRET_KEY } from "#test/support/stripe/stand-in.ts";

import { type PayingGateway, startPayingGateway } from "./support.ts";

let g: PayingGateway;
let key: CreatedKey;
beforeAll(async () => {
  g = await startPayingGateway();
});
afterAll(() => g.stop());
beforeEach(async () => {
  key = await g.t.newKey(mils(0));
});

const topups = (customerId: string) =>
  g.t.db.query<{ id: string; session_id: string | null; state: string; amount_cents: number }>(
    `SELECT id, session_id, state, amount_cents FROM topups WHERE customer_id = $1 ORDER BY created_at`,
    [customerId],
  );
const asked = (path: string) => g.stripe.requests.filter((request) => request.path === path);

describe("a top-up", () => {
  test("gives a page at Stripe where that amount is paid by our customer", async () => {
    const { status, body } = await g.topup(key.api_key, { amount_cents: 2_550 });
    expect(status).toBe(200);
    const session = g.stripe.books.sessions.get(String(body["session_id"]));
    expect(body).toEqual({
      session_id: session?.id,
      url: session?.url,
      amount_cents: 2_550,
      amount_usd: 25.5,
      customer_id: key.customer_id,
    });
    const [row] = await topups(key.customer_id);
    expect(row).toEqual({
      id: expect.stringMatching(/^topup_[0-9a-f]{32}$/),
      session_id: session?.id,
      state: "open",
      amount_cents: 2_550,
    });
    expect(session).toMatchObject({
      amount_total: 2_550,
      currency: "usd",
      client_reference_id: row?.id,
      metadata: { topup_id: row?.id, customer_id: key.customer_id, request_id: expect.stringMatching(/^req_/) },
    });
    const customer = g.stripe.books.customers.get(session?.customer ?? "");
    expect(customer?.["metadata"]).toEqual({ customer_id: key.customer_id });
    expect(customer?.["email"]).toMatch(/@example\.com$/);
    const request = asked("/v1/checkout/sessions").at(-1);
    expect(request?.idempotencyKey).toBe(row?.id);
    expect(field(request?.params as never, "payment_intent_data", "metadata", "topup_id")).toBe(row?.id);
    expect(field(request?.params as never, "success_url")).toMatch(/\/billing\/paid$/);
    expect((await g.accounts(key.customer_id)).balance_mils).toBe(0n);
  });

  test.for([500, 501, 1_000_000])("of %d cents is taken", async (amount_cents) => {
    expect((await g.topup(key.api_key, { amount_cents })).status).toBe(200);
  });

  test.for<[unknown]>([
    [{ amount_cents: 499 }],
    [{ amount_cents: 1_000_001 }],
    [{ amount_cents: 0 }],
    [{ amount_cents: -500 }],
    [{ amount_cents: 500.5 }],
    [{ amount_cents: "500" }],
    [{ amount_cents: true }],
    [{ amount_cents: null }],
    [{ amount_cents: [500] }],
    [{ amount_usd: 25 }],
    [[500]],
    ["500"],
    [null],
  ])("of %j is refused, with both bounds named", async ([body]) => {
    const before = asked("/v1/checkout/sessions").length;
    const answer = await g.topup(key.api_key, body);
    expect(answer.status).toBe(422);
    expect(answer.body["detail"]).toMatch(
      /^amount_cents: expected a whole number from 500 \(\$5\.00\) to 1000000 \(\$10,000\.00\), got /,
    );
    expect(await topups(key.customer_id)).toEqual([]);
    expect(asked("/v1/checkout/sessions")).toHaveLength(before);
  });

  test("tolerates fields that a later client may send", async () => {
    expect((await g.topup(key.api_key, { amount_cents: 500, note: "hello" })).status).toBe(200);
  });

  test("is small: a body that is not is refused unread", async () => {
    expect((await g.topup(key.api_key, { amount_cents: 500, note: "x".repeat(100_000) })).status).toBe(413);
  });

  test("needs a key", async () => {
    expect((await g.topup("dre_nobody", { amount_cents: 500 })).status).toBe(401);
  });

  test("works below a model's base URL", async () => {
    expect((await g.topup(key.api_key, { amount_cents: 500 }, {}, "/m/arm")).status).toBe(200);
  });

  test("makes one customer at Stripe, however many top-ups are asked for at once", async () => {
    const answers = await Promise.all([1, 2, 3, 4, 5].map(() => g.topup(key.api_key, { amount_cents: 700 })));
    expect(answers.map(({ status }) => status)).toEqual([200, 200, 200, 200, 200]);
    const made = [...g.stripe.books.customers.values()].filter(
      ({ metadata }) => (metadata as Record<string, string>)["customer_id"] === key.customer_id,
    );
    expect(made).toHaveLength(1);
    expect(new Set(answers.map(({ body }) => body["session_id"])).size).toBe(5);
  });

  test("finds another customer at Stripe when the one that we knew was deleted there", async () => {
    await g.session(key.api_key);
    const [row] = await g.t.db.query<{ stripe_customer_id: string }>(
      `SELECT stripe_customer_id FROM customers WHERE id = $1`,
      [key.customer_id],
    );
    g.stripe.books.customers.delete(row?.stripe_customer_id ?? "");
    const session = g.stripe.books.sessions.get(await g.session(key.api_key));
    expect(session?.customer).not.toBe(row?.stripe_customer_id);
    expect(g.stripe.books.customers.has(session?.customer ?? "")).toBe(true);
  });

  test("sends neither telemetry nor anything of ours but what a payment needs", async () => {
    await g.session(key.api_key);
    const sent = asked("/v1/checkout/sessions").at(-1);
    expect(sent?.headers["x-stripe-client-telemetry"]).toBeUndefined();
    expect(JSON.stringify(sent?.params)).not.toContain(key.api_key);
  });
});

describe("the same Idempotency-Key", () => {
  test("gives the same session", async () => {
    const headers = { "idempotency-key": "order-17" };
    const [first, again] = [
      await g.topup(key.api_key, { amount_cents: 900 }, headers),
      await g.topup(key.api_key, { amount_cents: 900 }, headers),
    ];
    expect(again.body).toEqual(first.body);
    expect(await topups(key.customer_id)).toHaveLength(1);
  });

  test("gives the same session to requests that come at once", async () => {
    const headers = { "idempotency-key": "order-18" };
    const answers = await Promise.all([1, 2, 3].map(() => g.topup(key.api_key, { amount_cents: 900 }, headers)));
    expect(answers.map(({ status }) => status)).toEqual([200, 200, 200]);
    expect(new Set(answers.map(({ body }) => body["session_id"])).size).toBe(1);
  });

  test("with another amount is refused", async () => {
    const headers = { "idempotency-key": "order-19" };
    await g.topup(key.api_key, { amount_cents: 900 }, headers);
    const { status, body } = await g.topup(key.api_key, { amount_cents: 901 }, headers);
    expect([status, body.error?.code]).toEqual([422, "idempotency_mismatch"]);
  });

  test("of another customer is another top-up", async () => {
    const headers = { "idempotency-key": "order-20" };
    const other = await g.t.newKey(mils(0));
    const mine = await g.topup(key.api_key, { amount_cents: 900 }, headers);
    const theirs = await g.topup(other.api_key, { amount_cents: 5_000 }, headers);
    expect([mine.status, theirs.status]).toEqual([200, 200]);
    expect(theirs.body["session_id"]).not.toBe(mine.body["session_id"]);
  });

  test("waits for the first request where that one is still at Stripe", async () => {
    const headers = { "idempotency-key": "order-22" };
    await g.session(key.api_key); // so that the customer is known, and both ask for the session at once
    g.stripe.misbehave({ path: /sessions$/, method: "POST", when: "after", how: { delay_ms: 400 } });
    const answers = await Promise.all([1, 2].map(() => g.topup(key.api_key, { amount_cents: 900 }, headers)));
    expect(answers.map(({ status }) => status)).toEqual([200, 200]);
    expect(answers[0]?.body).toEqual(answers[1]?.body);
  });

  test("goes on where an attempt broke off after Stripe had acted", async () => {
    const headers = { "idempotency-key": "order-21" };
    g.stripe.misbehave({ path: /sessions$/, method: "POST", when: "after", how: "cut", times: 3 });
    const broken = await g.topup(key.api_key, { amount_cents: 900 }, headers);
    expect([broken.status, broken.body.error?.code]).toEqual([503, "payments_unavailable"]);
    expect(await topups(key.customer_id)).toMatchObject([{ session_id: null, state: "open" }]);
    const { status, body } = await g.topup(key.api_key, { amount_cents: 900 }, headers);
    expect(status).toBe(200);
    const made = [...g.stripe.books.sessions.values()].filter(
      ({ metadata }) => metadata["customer_id"] === key.customer_id,
    );
    expect(made.map(({ id }) => id)).toEqual([body["session_id"]]);
  });
});

describe("when Stripe", () => {
  test("cannot be reached, nothing is charged and the caller may try again", async () => {
    const gone = await startPayingGateway({ config: { STRIPE_API_BASE: "http://127.0.0.1:9" } });
    const own = await gone.t.newKey(mils(0));
    const { status, body } = await gone.topup(own.api_key, { amount_cents: 500 });
    expect([status, body.error?.code]).toEqual([503, "payments_unavailable"]);
    expect(body["detail"]).toMatch(/nothing was charged/);
    await gone.stop();
  });

  test("does not answer, the caller is told within a bound, and a repetition finds what was begun", async () => {
    const request = {
      customer_id: key.customer_id,
      request_id: "req_1",
      amount_cents: 500,
      idempotency_key: "order-23",
      public_url: "http://dream.test",
    };
    const parts = { db: g.t.db, stripe: g.client, random: randomBytes };
    await g.session(key.api_key);
    g.stripe.misbehave({ path: /sessions$/, method: "POST", when: "after", how: { delay_ms: 600 } });
    await expect(startCheckout({ ...parts, timeoutMs: 100 }, request)).rejects.toMatchObject({
      code: "payments_unavailable",
    });
    const before = g.stripe.books.sessions.size;
    const { session_id } = await startCheckout(parts, request);
    expect(g.stripe.books.sessions.get(session_id)?.amount_total).toBe(500);
    expect(g.stripe.books.sessions.size).toBe(before);
  });

  test("answers 500 once, the package's own retry finds it well", async () => {
    g.stripe.misbehave({ path: /sessions$/, method: "POST", when: "before", how: { status: 500 } });
    expect((await g.topup(key.api_key, { amount_cents: 500 })).status).toBe(200);
  });

  test("answers 500 after it has acted, its session cannot be paid by anybody and the next request makes another", async () => {
    g.stripe.misbehave({ path: /sessions$/, method: "POST", when: "after", how: { status: 500 } });
    expect((await g.topup(key.api_key, { amount_cents: 500 })).status).toBe(503);
    expect((await g.topup(key.api_key, { amount_cents: 500 })).status).toBe(200);
    expect((await topups(key.customer_id)).map(({ session_id }) => session_id === null)).toEqual([true, false]);
  });

  test("cuts the connection while the customer is made, there is one customer in the end", async () => {
    g.stripe.misbehave({ path: /customers$/, method: "POST", when: "after", how: "cut" });
    expect((await g.topup(key.api_key, { amount_cents: 500 })).status).toBe(200);
    const made = [...g.stripe.books.customers.values()].filter(
      ({ metadata }) => (metadata as Record<string, string>)["customer_id"] === key.customer_id,
    );
    expect(made).toHaveLength(1);
  });

  test("refuses our key, the caller learns nothing of it", async () => {
    const wrong = await startPayingGateway({ config: { STRIPE_SECRET_KEY: "sk_test_revoked_key_of_ours" } });
    const own = await wrong.t.newKey(mils(0));
    const { status, body } = await wrong.topup(own.api_key, { amount_cents: 500 });
    expect([status, body.error?.code]).toEqual([503, "payments_unavailable"]);
    expect(JSON.stringify(body)).not.toMatch(/sk_test|API Key|stripe/i);
    await wrong.stop();
  });
});

describe("without Stripe configured", () => {
  test.for<[GatewayOverrides["config"] & {}, string]>([
    [{}, "STRIPE_SECRET_KEY and STRIPE_WEBHOOK_SECRET"],
    [{ STRIPE_SECRET_KEY: TEST_SECRET_KEY }, "STRIPE_WEBHOOK_SECRET"],
    [{ STRIPE_WEBHOOK_SECRET: ["whsec_1"] }, "STRIPE_SECRET_KEY"],
  ])("(%j) a top-up says what its operator sets, and everything else works", async ([config, missing]) => {
    const t = await startTestGateway({ config });
    const own = await t.newKey(mils(5));
    const headers = { authorization: `Bearer ${own.api_key}` };
    const answer = await t.app.inject({
      method: "POST",
      url: "/v1/billing/topup",
      headers,
      payload: { amount_cents: 500 },
    });
    expect([answer.statusCode, answer.json().error.code]).toEqual([503, "topup_not_configured"]);
    expect(answer.json().detail).toContain(
      `sets ${missing}, or adds credits with: dream-engine credits grant ${own.customer_id}`,
    );
    const balance = await t.app.inject({ url: "/v1/billing/balance", headers });
    expect(balance.json().balance_mils).toBe(5);
    await t.stop();
  });
});

test.for([
  ["/billing/paid", /payment was received/],
  ["/billing/cancelled", /Nothing was charged/],
] as const)("%s is a page for people that does nothing", async ([url, says]) => {
  const answer = await g.t.app.inject({ url });
  expect(answer.statusCode).toBe(200);
  expect(answer.headers["content-type"]).toBe("text/html; charset=utf-8");
  expect(answer.headers["content-security-policy"]).toContain("default-src 'none'");
  expect(answer.body).toMatch(says);
});
