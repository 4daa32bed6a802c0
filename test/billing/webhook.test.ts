/** What a webhook must show before it is believed, and what Stripe is told when we could not take it in. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";

import { verifyWebhook } from "#billing/webhook.ts";
import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { startTestGateway } from "#test/gateway/support/test-gateway.ts";
import { createDeliveries, type Signed } from "#test/support/stripe/deliveries.ts";
import { TEST_WEBHOOK_SECRET } from "#test/support/stripe/stand-in.ts";

import { dollars, type PayingGateway, startPayingGateway, webhookOf } from "./support.ts";

const NOW_MS = 1_790_000_000_500;
const NOW_S = Math.floor(NOW_MS / 1000);
const deliveries = createDeliveries({ secret: "whsec_new", clock: { now: () => NOW_MS } });
const sign = (...args: Parameters<typeof deliveries.sign>): Signed => deliveries.sign(...args);
const event = {
  id: "evt_1",
  object: "event",
  type: "customer.created",
  created: NOW_S,
  livemode: false,
  data: { object: {} },
};
const verify = ({ body, signature }: Signed, secrets = ["whsec_new"], nowMs = NOW_MS) =>
  verifyWebhook({ body: Buffer.from(body), signature }, secrets, nowMs);

describe("a signature", () => {
  test("over these bytes by our secret is believed", () => {
    expect(verify(sign(event))).toMatchObject({ id: "evt_1" });
  });

  test("by any of several secrets is believed, and by several at once", () => {
    expect(verify(sign(event), ["whsec_old", "whsec_new"])).toMatchObject({ id: "evt_1" });
    expect(verify(sign(event), ["whsec_new", "whsec_old"])).toMatchObject({ id: "evt_1" });
    expect(verify(sign(event, { secrets: ["whsec_older", "whsec_new"] }))).toMatchObject({ id: "evt_1" });
  });

  const forgeries: readonly (readonly [string, (signed: Signed) => Signed])[] = [
    ["by another secret", () => sign(event, { secrets: ["whsec_other"] })],
    ["over other bytes", (signed) => ({ ...signed, body: `${signed.body} ` })],
    ["over other content", (signed) => ({ ...signed, body: signed.body.replace("evt_1", "evt_2") })],
    [
      "of the same content, spaced otherwise",
      (signed) => ({ ...signed, body: JSON.stringify(JSON.parse(signed.body)) }),
    ],
    ["with another time", (signed) => ({ ...signed, signature: signed.signature.replace(/t=\d+/, `t=${NOW_S - 1}`) })],
    ["with a second time", (signed) => ({ ...signed, signature: `t=${NOW_S - 1},${signed.signature}` })],
    ["without a time", (signed) => ({ ...signed, signature: signed.signature.replace(/t=\d+,/, "") })],
    [
      "with a time that is no number",
      (signed) => ({ ...signed, signature: signed.signature.replace(/t=\d+/, "t=soon") }),
    ],
    ["of another scheme alone", (signed) => ({ ...signed, signature: signed.signature.replaceAll("v1=", "v0=") })],
    ["that is cut short", (signed) => ({ ...signed, signature: signed.signature.replace(/v1=.{10}/, "v1=") })],
    ["that is empty", (signed) => ({ ...signed, signature: "" })],
    ["that is not there", (signed) => ({ body: signed.body, signature: undefined as never })],
  ];
  test.for(forgeries)("%s is refused, saying no more than that", ([, change]) => {
    expect(() => verify(change(sign(event)))).toThrow("the signature of this webhook is not valid");
  });

  test("is refused without any secret", () => {
    expect(() => verify(sign(event), [])).toThrow("the signature of this webhook is not valid");
  });

  test.for([0, -60, 300, -1])("made %d s ago is taken", (age) => {
    expect(verify(sign(event, { timestamp: NOW_S - age }))).toMatchObject({ id: "evt_1" });
  });

  test.for([301, 3_600, -61, -3_600, -1e9])("made %d s ago is refused: it is a replay, or from the future", (age) => {
    expect(() => verify(sign(event, { timestamp: NOW_S - age }))).toThrow("the timestamp of this webhook is not valid");
  });

  test.for<[string, unknown]>([
    ["nothing", ""],
    ["no JSON", "hello"],
    ["null", "null"],
    ["a list", "[]"],
    ["another object", { id: "x", object: "charge" }],
    ["an event without data", { ...event, data: undefined }],
    ["an event of the other API", { ...event, object: "v2.core.event" }],
    ["an event whose mode is not said", { ...event, livemode: "true" }],
  ])("over %s does not make it an event", ([, body]) => {
    expect(() => verify(sign(body))).toThrow("expected an event of Stripe's API");
  });
});

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

  test.for([
    ["without a signature", {}],
    ["with a forged one", { "stripe-signature": `t=${NOW_S},v1=${"0".repeat(64)}` }],
  ] as const)("refuses a webhook %s, and nothing is stored", async ([, headers]) => {
    g.stripe.books.pay(await g.session(key.api_key));
    const before = await storedEvents();
    const answer = await post(JSON.stringify(g.stripe.outbox[0]), { "content-type": "application/json", ...headers });
    expect([answer.statusCode, answer.json().error.code]).toEqual([400, "webhook_rejected"]);
    expect(answer.json().detail).toBe("the signature of this webhook is not valid");
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

  test("answers 500 to an event of ours that cannot be read, so that it comes again", async () => {
    const broken = { ...event, id: "evt_broken", type: "checkout.session.completed", data: { object: { id: 7 } } };
    expect(await g.endpoint(g.stripe.sign(broken))).toBe(500);
    expect(await g.t.db.query(`SELECT id FROM stripe_events WHERE id = 'evt_broken'`)).toEqual([]);
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
