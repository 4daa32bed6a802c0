/** Asking for a payment: what is refused, what Stripe is asked, and what is left when Stripe misbehaves. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";

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

  test("is asked for ten times at once by one customer at most, and others are not held up by it", async () => {
    const answers = await Promise.all(Array.from({ length: 12 }, () => g.topup(key.api_key, { amount_cents: 500 })));
    expect(answers.filter(({ status }) => status === 200)).toHaveLength(10);
    expect(answers.filter(({ status }) => status === 429)).toHaveLength(2);
    expect(answers.find(({ status }) => status === 429)?.body.error?.code).toBe("rate_limited");
    expect(await topups(key.customer_id)).toHaveLength(10);
    const other = await g.t.newKey(mils(0));
    expect((await g.topup(other.api_key, { amount_cents: 500 })).status).toBe(200);
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
