/** The same top-up once more: under the same Idempotency-Key, or because Stripe misbehaved. */
import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";

import { startCheckout } from "#billing/checkout.ts";
import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";

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

  test("begins anew a day later", async () => {
    const headers = { "idempotency-key": "order-25" };
    const first = await g.topup(key.api_key, { amount_cents: 900 }, headers);
    const age = (hours: number) =>
      g.t.db.query(`UPDATE topups SET created_at = now() - $2 * interval '1 hour' WHERE customer_id = $1`, [
        key.customer_id,
        hours,
      ]);
    await age(23);
    expect((await g.topup(key.api_key, { amount_cents: 900 }, headers)).body).toEqual(first.body);
    await age(25);
    const later = await Promise.all([1, 2, 3].map(() => g.topup(key.api_key, { amount_cents: 901 }, headers)));
    expect(later.map(({ status }) => status)).toEqual([200, 200, 200]);
    expect(new Set(later.map(({ body }) => body["session_id"])).size).toBe(1);
    expect(later[0]?.body["session_id"]).not.toBe(first.body["session_id"]);
    expect(await topups(key.customer_id)).toHaveLength(2);
  });

  test.for(["expired", "failed"])("begins anew after its session %s", async (how) => {
    const headers = { "idempotency-key": "order-26" };
    const first = await g.topup(key.api_key, { amount_cents: 900 }, headers);
    const session = String(first.body["session_id"]);
    g.stripe.drop();
    if (how === "expired") g.stripe.books.expire(session);
    else {
      g.stripe.books.pay(session, { arrives: "later" });
      g.stripe.books.arrive(session, "failed");
    }
    await g.stripe.flush(g.endpoint);
    const again = await g.topup(key.api_key, { amount_cents: 900 }, headers);
    expect(again.status).toBe(200);
    expect(again.body["session_id"]).not.toBe(session);
  });

  test("gives the same session after it was paid", async () => {
    const headers = { "idempotency-key": "order-27" };
    const first = await g.topup(key.api_key, { amount_cents: 900 }, headers);
    g.stripe.drop();
    g.stripe.books.pay(String(first.body["session_id"]));
    await g.stripe.flush(g.endpoint);
    expect((await g.topup(key.api_key, { amount_cents: 900 }, headers)).body).toEqual(first.body);
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

  test("answers 500 after it has acted, and keeps that under the key, another key gets a session", async () => {
    g.stripe.misbehave({ path: /sessions$/, method: "POST", when: "after", how: { status: 500 } });
    const headers = { "idempotency-key": "order-24" };
    const { status, body } = await g.topup(key.api_key, { amount_cents: 500 }, headers);
    expect(status).toBe(200);
    const [topup, ...more] = await topups(key.customer_id);
    expect([topup?.session_id, more]).toEqual([body["session_id"], []]);
    expect((await g.topup(key.api_key, { amount_cents: 500 }, headers)).body).toEqual(body);
    // The session that nobody saw ends, and the one that was given out is not ended by it.
    const made = [...g.stripe.books.sessions.values()].filter(({ metadata }) => metadata["topup_id"] === topup?.id);
    expect(made).toHaveLength(2);
    const unseen = made.find(({ id }) => id !== body["session_id"]);
    g.stripe.drop();
    g.stripe.books.expire(String(unseen?.id));
    expect(await g.stripe.flush(g.endpoint)).toEqual([200]);
    expect(await topups(key.customer_id)).toMatchObject([{ state: "open", session_id: body["session_id"] }]);
  });

  test("made two sessions for one top-up and both are paid, one is credited and the other stays visible", async () => {
    g.stripe.misbehave({ path: /sessions$/, method: "POST", when: "after", how: { status: 500 } });
    await g.session(key.api_key, 500);
    const [topup] = await topups(key.customer_id);
    const made = [...g.stripe.books.sessions.values()].filter(({ metadata }) => metadata["topup_id"] === topup?.id);
    g.stripe.drop();
    const paid = made.map(({ id }) => g.stripe.books.pay(id));
    expect(await g.stripe.flush(g.endpoint)).toEqual([200, 200]);
    expect((await g.accounts(key.customer_id)).balance_mils).toBe(50_000n);
    expect((await g.payment(String(paid[1])))?.problem).toMatch(/^paid 500 cents for topup_.*, which pi_.* had paid$/);
  });

  test("keeps a 500 under our customer's key, another key makes the customer", async () => {
    g.stripe.misbehave({ path: /customers$/, method: "POST", when: "after", how: { status: 500 } });
    for (const _ of [1, 2]) expect((await g.topup(key.api_key, { amount_cents: 500 })).status).toBe(200);
  });

  test("knows our customer's key with another e-mail, another key makes the customer", async () => {
    g.stripe.misbehave({ path: /customers$/, method: "POST", when: "after", how: "cut", times: 3 });
    expect((await g.topup(key.api_key, { amount_cents: 500 })).status).toBe(503);
    await g.t.db.query(`UPDATE customers SET email = 'other-' || email WHERE id = $1`, [key.customer_id]);
    expect((await g.topup(key.api_key, { amount_cents: 500 })).status).toBe(200);
  });

  test("answers 500 to everything, the caller is told and may try again", async () => {
    g.stripe.misbehave({ path: /sessions$/, method: "POST", when: "before", how: { status: 500 }, times: 6 });
    expect((await g.topup(key.api_key, { amount_cents: 500 })).status).toBe(503);
    expect((await g.topup(key.api_key, { amount_cents: 500 })).status).toBe(200);
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
