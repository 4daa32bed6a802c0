/** What becomes of a webhook that is signed, and what Stripe is told when we could not take it in. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { readBooks } from "#ledger/books.ts";
import { startTestGateway } from "#test/gateway/support/test-gateway.ts";
import { TEST_WEBHOOK_SECRET } from "#test/support/stripe/stand-in.ts";

import { dollars, type PayingGateway, startPayingGateway, webhookOf } from "./support.ts";

const NOW_S = 1_790_000_000;
const event = {
  id: "evt_1",
  object: "event",
  type: "customer.created",
  created: NOW_S,
  livemode: false,
  data: { object: {} },
};

describe("POST /v1/billing/webhook", () => {
  let g: PayingGateway;
  let key: CreatedKey;
  beforeAll(async () => {
    g = await startPayingGateway();
  });
  afterAll(() => g.stop());
  beforeEach(async () => {
    g.stripe.drop();
    key = await g.t.newKey(mils(0));
  });

  const post = (payload: string, headers: Record<string, string>) =>
    g.t.app.inject({ method: "POST", url: "/v1/billing/webhook", payload, headers });
  const storedEvents = async () => (await g.t.db.query<{ n: bigint }>(`SELECT count(*) AS n FROM stripe_events`))[0]?.n;

  test("needs no key, and answers 200 after the credit is committed", async () => {
    g.stripe.books.pay(await g.session(key.api_key));
    expect(await g.stripe.flush(g.endpoint)).toEqual([200]);
    expect((await g.accounts(key.customer_id)).balance_mils).toBe(dollars(25));
  });

  test("takes the bytes as they came, whatever type they claim", async () => {
    g.stripe.books.pay(await g.session(key.api_key));
    const [paid] = g.stripe.outbox;
    const { body, signature } = g.stripe.sign(paid);
    const odd = await post(body, { "content-type": "text/plain", "stripe-signature": signature });
    expect(odd.statusCode).toBe(200);
    expect((await g.accounts(key.customer_id)).balance_mils).toBe(dollars(25));
  });

  test("takes them below the base URL of a model, too", async () => {
    g.stripe.books.pay(await g.session(key.api_key));
    const { body, signature } = g.stripe.sign(g.stripe.outbox[0]);
    const headers = { "content-type": "application/json", "stripe-signature": signature };
    const url = "/m/pusher/v1/billing/webhook";
    expect((await g.t.app.inject({ method: "POST", url, payload: body, headers })).statusCode).toBe(200);
    expect((await g.accounts(key.customer_id)).balance_mils).toBe(dollars(25));
  });

  test.for([
    ["without a signature", {}],
    ["with a forged one", { "stripe-signature": `t=${NOW_S},v1=${"0".repeat(64)}` }],
  ] as const)("refuses a webhook %s, and nothing is stored", async ([, headers]) => {
    g.stripe.books.pay(await g.session(key.api_key));
    const before = await storedEvents();
    const answer = await post(JSON.stringify(g.stripe.outbox[0]), { "content-type": "application/json", ...headers });
    expect([answer.statusCode, answer.json().error.code]).toEqual([400, "webhook_rejected"]);
    expect(answer.json().detail).toMatch(
      /^the signature of this webhook is not valid: expected the header Stripe-Signature/,
    );
    expect(await storedEvents()).toBe(before);
    expect((await g.accounts(key.customer_id)).balance_mils).toBe(0n);
  });

  test("refuses a body above its bound", async () => {
    const { body, signature } = g.stripe.sign({ ...event, padding: "x".repeat(1_100_000) });
    const answer = await post(body, { "content-type": "application/json", "stripe-signature": signature });
    expect(answer.statusCode).toBe(413);
  });

  test("refuses live events under a test key, so that Stripe keeps them", async () => {
    g.stripe.books.pay(await g.session(key.api_key));
    const { body, signature } = g.stripe.sign({ ...g.stripe.outbox[0], livemode: true });
    const answer = await post(body, { "stripe-signature": signature });
    expect([answer.statusCode, answer.json().error.code]).toEqual([400, "webhook_rejected"]);
    expect((await g.accounts(key.customer_id)).balance_mils).toBe(0n);
  });

  test("credits nothing for test events under a live key", async () => {
    g.stripe.books.pay(await g.session(key.api_key));
    const live = await startTestGateway({
      db: g.t.db,
      config: { ...g.t.options.config, STRIPE_SECRET_KEY: "sk_live_not_a_real_key" },
    });
    expect(await webhookOf(live)(g.stripe.sign(g.stripe.outbox[0]))).toBe(200);
    expect((await g.accounts(key.customer_id)).balance_mils).toBe(0n);
    await live.stop();
  });

  test("acknowledges and records types that it does not handle", async () => {
    expect(await g.endpoint(g.stripe.sign({ ...event, id: "evt_unhandled" }))).toBe(200);
    expect(await g.t.db.query(`SELECT type, outcome FROM stripe_events WHERE id = 'evt_unhandled'`)).toEqual([
      { type: "customer.created", outcome: "ignored: not about top-ups" },
    ]);
  });

  test("does not believe what an account that is connected to ours says", async () => {
    g.stripe.books.pay(await g.session(key.api_key));
    expect(await g.endpoint(g.stripe.sign({ ...g.stripe.outbox[0], account: "acct_other" }))).toBe(200);
    expect((await g.accounts(key.customer_id)).balance_mils).toBe(0n);
  });

  test("needs of a signed event no more than what it reads", async () => {
    const session = g.stripe.books.sessions.get(await g.session(key.api_key));
    const object = {
      id: session?.id,
      payment_status: "paid",
      payment_intent: "pi_trimmed",
      amount_total: 2_500,
      currency: "usd",
      client_reference_id: session?.["client_reference_id"],
    };
    const trimmed = { id: "evt_trimmed", type: "checkout.session.completed", data: { object } };
    expect(await g.endpoint(g.stripe.sign(trimmed))).toBe(200);
    expect((await g.accounts(key.customer_id)).balance_mils).toBe(dollars(25));
    const refund = { id: "ch_trimmed", payment_intent: "pi_trimmed", amount_refunded: 500 };
    expect(await g.endpoint(g.stripe.sign({ id: "evt_t2", type: "charge.refunded", data: { object: refund } }))).toBe(
      200,
    );
    const dispute = { id: "du_trimmed", payment_intent: "pi_trimmed", amount: 700, status: "needs_response" };
    const created = { id: "evt_t3", type: "charge.dispute.created", data: { object: dispute } };
    expect(await g.endpoint(g.stripe.sign(created))).toBe(200);
    expect((await g.accounts(key.customer_id)).balance_mils).toBe(dollars(13));
  });

  test("credits a session that names no payment once, under the session's id", async () => {
    const session = g.stripe.books.sessions.get(await g.session(key.api_key));
    const object = { ...session, status: "complete", payment_status: "paid", payment_intent: null };
    for (const id of ["evt_n1", "evt_n2"]) {
      expect(await g.endpoint(g.stripe.sign({ id, type: "checkout.session.completed", data: { object } }))).toBe(200);
    }
    expect((await g.accounts(key.customer_id)).balance_mils).toBe(dollars(25));
  });

  test("keeps an event that cannot be read aside, as one that was not taken in, and acknowledges it", async () => {
    const broken = { ...event, id: "evt_broken", type: "checkout.session.completed", data: { object: { id: 7 } } };
    for (const _ of [1, 2]) expect(await g.endpoint(g.stripe.sign(broken))).toBe(200);
    expect(await g.t.db.query(`SELECT id FROM stripe_events WHERE id = 'evt_broken'`)).toEqual([]);
    expect(await g.t.db.query(`SELECT id, type, why FROM stripe_events_unread`)).toEqual([
      {
        id: "evt_broken",
        type: "checkout.session.completed",
        why: "a Checkout session that cannot be read: /id must be string",
      },
    ]);
    expect((await readBooks(g.t.db)).unread_events).toBe(1);
    // A newer version of the program can read it, when reconciliation brings it again.
    expect(await g.endpoint(g.stripe.sign({ ...broken, data: { object: { id: "cs_7" } } }))).toBe(200);
    expect((await readBooks(g.t.db)).unread_events).toBe(0);
  });

  test("ignores what it cannot read of other products", async () => {
    const charge = { id: "ch_7", amount_refunded: "all", payment_intent: "pi_other", metadata: { order: "7" } };
    const sent = { ...event, id: "evt_other_product", type: "charge.refunded", data: { object: charge } };
    expect(await g.endpoint(g.stripe.sign(sent))).toBe(200);
    expect(await g.t.db.query(`SELECT outcome FROM stripe_events WHERE id = 'evt_other_product'`)).toEqual([
      { outcome: expect.stringMatching(/^ignored: a charge that cannot be read: .*, and names nothing of ours$/) },
    ]);
  });

  test.for<[string, object]>([
    ["charge.refunded", { amount_refunded: 2_500_000_000 }],
    ["refund.created", { amount: 2_500_000_000, status: "succeeded" }],
    ["charge.dispute.created", { amount: 2_500_000_000, status: "needs_response" }],
    ["checkout.session.completed", { amount_total: 2_500_000_000, payment_status: "paid" }],
  ])("takes in %s of any amount: other currencies have small units", async ([type, fields]) => {
    const object = { id: `x_${type}`, currency: "idr", payment_intent: `pi_idr_${type}`, ...fields };
    expect(await g.endpoint(g.stripe.sign({ ...event, id: `evt_idr_${type}`, type, data: { object } }))).toBe(200);
    expect(await g.t.db.query(`SELECT id FROM stripe_events WHERE id = $1`, [`evt_idr_${type}`])).toHaveLength(1);
  });

  test("records an amount beyond any of ours that one of our sessions says, and credits none of it", async () => {
    const session = g.stripe.books.sessions.get(await g.session(key.api_key));
    const object = { ...session, payment_status: "paid", amount_total: 2_500_000_000, payment_intent: "pi_huge" };
    expect(
      await g.endpoint(
        g.stripe.sign({ ...event, id: "evt_huge", type: "checkout.session.completed", data: { object } }),
      ),
    ).toBe(200);
    expect((await g.payment("pi_huge"))?.problem).toBe("paid 2500000000 cents, the top-up is about 2500 cents");
    expect((await g.accounts(key.customer_id)).balance_mils).toBe(0n);
  });

  test("is signed for rotation: the old secret and the new one both work", async () => {
    const rotating = await startTestGateway({
      db: g.t.db,
      config: { ...g.t.options.config, STRIPE_WEBHOOK_SECRET: ["whsec_next", TEST_WEBHOOK_SECRET] },
    });
    for (const secret of ["whsec_next", TEST_WEBHOOK_SECRET]) {
      expect(await webhookOf(rotating)(g.stripe.sign({ ...event, id: `evt_${secret}` }, { secrets: [secret] }))).toBe(
        200,
      );
    }
    await rotating.stop();
  });

  test("says what its operator sets where it is not configured", async () => {
    const t = await startTestGateway();
    const answer = await t.app.inject({ method: "POST", url: "/v1/billing/webhook", payload: "{}" });
    expect([answer.statusCode, answer.json().error.code]).toEqual([503, "topup_not_configured"]);
    expect(answer.json().detail).toContain("STRIPE_WEBHOOK_SECRET");
    await t.stop();
  });
});

describe("a database that fails", () => {
  test.for([
    ["before anything is stored", /INSERT INTO payments/],
    ["between the credit and the event", /INSERT INTO stripe_events/],
    ["at the commit", /COMMIT/],
  ] as const)("%s answers 5xx; the event comes again and is credited once", async ([, which]) => {
    let failures = 2;
    const failing = { now: false };
    const g = await startPayingGateway({}, (db) => ({
      ...db,
      transaction: (run) =>
        db.transaction(async (tx) => {
          const result = await run({
            query: async (text, params) => {
              if (failing.now && which.test(text) && failures-- > 0) throw new Error("the database is on fire");
              return tx.query(text, params);
            },
          });
          if (failing.now && which.test("COMMIT") && failures-- > 0) throw new Error("the connection was cut");
          return result;
        }),
    }));
    const key = await g.t.newKey(mils(0));
    g.stripe.books.pay(await g.session(key.api_key));
    failing.now = true;
    expect(await g.stripe.flush(g.endpoint)).toEqual([500]);
    expect(await g.stripe.flush(g.endpoint)).toEqual([500]);
    expect((await g.accounts(key.customer_id)).balance_mils).toBe(0n);
    expect(await g.stripe.flush(g.endpoint)).toEqual([200]);
    expect(await g.stripe.flush(g.endpoint)).toEqual([]);
    expect((await g.accounts(key.customer_id)).balance_mils).toBe(dollars(25));
    await g.stop();
  });
});
