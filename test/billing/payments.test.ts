/** What Stripe tells of payments, and what it makes of balances: once, whatever comes, in whatever order. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { assertBooksBalance } from "#test/support/ledger.ts";

import { dollars, type PayingGateway, startPayingGateway } from "./support.ts";

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
afterEach(() => assertBooksBalance(g.t.db));

const flush = () => g.stripe.flush(g.endpoint);
const balance = async () => (await g.accounts(key.customer_id)).balance_mils;
const debt = async () => (await g.accounts(key.customer_id)).debt_mils;
const paymentRow = (id: string) => g.payment(id);
const topupState = async (sessionId: string) =>
  (await g.t.db.query<{ state: string }>(`SELECT state FROM topups WHERE session_id = $1`, [sessionId]))[0]?.state;

describe("a payment", () => {
  test("is credited once it is paid, and shows on the statement under Stripe's event", async () => {
    const session = await g.session(key.api_key);
    const payment = g.stripe.books.pay(session);
    const [paid] = g.stripe.outbox;
    expect(await flush()).toEqual([200]);
    expect(await balance()).toBe(dollars(25));
    expect(await topupState(session)).toBe("paid");
    expect(await paymentRow(payment)).toEqual({ problem: null, credited_mils: 250_000n, credited_by_event: paid?.id });
    const answer = await g.t.app.inject({
      url: "/v1/billing/transactions",
      headers: { authorization: `Bearer ${key.api_key}` },
    });
    expect(answer.json().transactions).toMatchObject([
      { id: paid?.id, kind: "credit", amount_mils: 250_000, amount_usd: 25, detail: "top-up · $25.00" },
    ]);
  });

  test("is credited once, however often it is told", async () => {
    g.stripe.books.pay(await g.session(key.api_key));
    const [paid] = g.stripe.outbox;
    if (!paid) throw new Error("no event");
    expect(await g.stripe.deliver([paid, paid, paid], g.endpoint)).toEqual([200, 200, 200]);
    expect(await balance()).toBe(dollars(25));
  });

  test("is credited once when it is told by several at once", async () => {
    g.stripe.books.pay(await g.session(key.api_key));
    const signed = g.stripe.sign(g.stripe.outbox[0]);
    const statuses = await Promise.all(Array.from({ length: 12 }, () => g.endpoint(signed)));
    expect(new Set(statuses)).toEqual(new Set([200]));
    expect(await balance()).toBe(dollars(25));
  });

  test("is credited once when two different events tell of it at once", async () => {
    const session = await g.session(key.api_key);
    g.stripe.books.pay(session, { arrives: "later" });
    g.stripe.books.arrive(session, "succeeded");
    const succeeded = g.stripe.outbox[1];
    const statuses = await Promise.all(
      [1, 2, 3, 4].map((n) => g.endpoint(g.stripe.sign({ ...succeeded, id: `${succeeded?.id}_${n}` }))),
    );
    expect(statuses).toEqual([200, 200, 200, 200]);
    expect(await balance()).toBe(dollars(25));
  });

  test("by a delayed method is credited when it arrives, and not when it is promised", async () => {
    const session = await g.session(key.api_key);
    g.stripe.books.pay(session, { arrives: "later" });
    await flush();
    expect([await balance(), await topupState(session)]).toEqual([0n, "open"]);
    g.stripe.books.arrive(session, "succeeded");
    await flush();
    expect([await balance(), await topupState(session)]).toEqual([dollars(25), "paid"]);
  });

  test("that does not arrive is never credited", async () => {
    const session = await g.session(key.api_key);
    g.stripe.books.pay(session, { arrives: "later" });
    g.stripe.books.arrive(session, "failed");
    await flush();
    expect([await balance(), await topupState(session)]).toEqual([0n, "failed"]);
  });

  test("told before the promise of it is credited once", async () => {
    const session = await g.session(key.api_key);
    g.stripe.books.pay(session, { arrives: "later" });
    g.stripe.books.arrive(session, "succeeded");
    await g.stripe.deliver([...g.stripe.outbox].toReversed(), g.endpoint);
    expect([await balance(), await topupState(session)]).toEqual([dollars(25), "paid"]);
  });

  test("is credited although its session is later told to have expired", async () => {
    const session = await g.session(key.api_key);
    g.stripe.books.pay(session);
    await flush();
    const expired = { ...g.stripe.books.events.at(-1), id: "evt_late", type: "checkout.session.expired" };
    const object = { ...g.stripe.books.sessions.get(session), status: "expired", payment_status: "unpaid" };
    expect(await g.endpoint(g.stripe.sign({ ...expired, data: { object } }))).toBe(200);
    expect([await balance(), await topupState(session)]).toEqual([dollars(25), "paid"]);
  });

  test("is credited although our process died before it stored the session", async () => {
    const session = await g.session(key.api_key);
    await g.t.db.query(`UPDATE topups SET session_id = NULL, session_url = NULL WHERE session_id = $1`, [session]);
    g.stripe.books.pay(session);
    await flush();
    expect([await balance(), await topupState(session)]).toEqual([dollars(25), "paid"]);
  });

  test("of a customer that was closed meanwhile is still recorded", async () => {
    const session = await g.session(key.api_key);
    await g.t.db.query(`UPDATE customers SET closed_at = now() WHERE id = $1`, [key.customer_id]);
    g.stripe.books.pay(session);
    await flush();
    expect(await balance()).toBe(dollars(25));
  });

  test("session that nobody pays expires without a trace on the balance", async () => {
    const session = await g.session(key.api_key);
    g.stripe.books.expire(session);
    await flush();
    expect([await balance(), await topupState(session)]).toEqual([0n, "expired"]);
  });

  test("pays debt first", async () => {
    const first = g.stripe.books.pay(await g.session(key.api_key, 1_000));
    await flush();
    await g.spendAllBut(key.customer_id, 0n);
    g.stripe.books.refund(first);
    await flush();
    expect([await balance(), await debt()]).toEqual([0n, dollars(10)]);
    g.stripe.books.pay(await g.session(key.api_key, 1_500));
    await flush();
    expect([await balance(), await debt()]).toEqual([dollars(5), 0n]);
  });
});

/** Told, and not credited: why. */
const unresolved = async (payment: string) => {
  await flush();
  expect(await balance()).toBe(0n);
  return (await paymentRow(payment))?.problem;
};

describe("money that Stripe holds and that is not what was asked for", () => {
  test("in another currency is not credited, and stays visible", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key), { currency: "jpy" });
    expect(await unresolved(payment)).toBe("paid 2500 jpy, the top-up is about 2500 cents");
  });

  test.for([2_499, 2_501, 1])("of another amount (%d) is not credited, and stays visible", async (amount) => {
    const payment = g.stripe.books.pay(await g.session(key.api_key), { amount });
    expect(await unresolved(payment)).toBe(`paid ${amount} cents, the top-up is about 2500 cents`);
  });

  test("for a top-up that we do not know is not credited, and stays visible", async () => {
    const id = `topup_${"0".repeat(32)}`;
    const metadata = { topup_id: id, customer_id: key.customer_id };
    const session = g.stripe.books.createSession({
      amount: 2_500,
      currency: "usd",
      customer: null,
      client_reference_id: id,
      metadata,
      payment_metadata: metadata,
    });
    expect(await unresolved(g.stripe.books.pay(session.id))).toBe(`paid 2500 cents for the unknown top-up ${id}`);
  });

  test("for another customer than the top-up's is not credited, and stays visible", async () => {
    const session = await g.session(key.api_key);
    const made = g.stripe.books.sessions.get(session);
    if (made) made.metadata = { ...made.metadata, customer_id: "cus_nobody" };
    expect(await unresolved(g.stripe.books.pay(session))).toMatch(/^paid 2500 cents for cus_nobody, the top-up is of /);
  });

  test("by one of our customers without a top-up is not credited, and stays visible", async () => {
    const known = g.stripe.books.sessions.get(await g.session(key.api_key));
    const fields = { amount: 3_000, currency: "usd", client_reference_id: null, metadata: {}, payment_metadata: {} };
    const session = g.stripe.books.createSession({ ...fields, customer: known?.customer ?? null });
    expect(await unresolved(g.stripe.books.pay(session.id))).toBe("paid 3000 cents without naming a top-up");
  });

  test("through a Payment Link that names somebody's top-up is not believed, and stays visible", async () => {
    const asked = await g.session(key.api_key);
    const topup = String(g.stripe.books.sessions.get(asked)?.["client_reference_id"]);
    // Whoever opens such a link may add ?client_reference_id=… to it.
    const fields = { amount: 2_500, currency: "usd", customer: null, metadata: {}, payment_metadata: {} };
    const link = g.stripe.books.createSession({ ...fields, client_reference_id: topup });
    const payment = g.stripe.books.pay(link.id);
    expect(await unresolved(payment)).toBe(
      `paid 2500 cents by a session that is not the one of ${topup}, which it names`,
    );
    expect(await topupState(asked)).toBe("open");
    // And it does not stand in the way of the real one.
    g.stripe.books.pay(asked);
    await flush();
    expect([await balance(), await topupState(asked)]).toEqual([dollars(25), "paid"]);
  });

  test("through a Payment Link whose session ends unpaid does not end the top-up that it names", async () => {
    const asked = await g.session(key.api_key);
    const topup = String(g.stripe.books.sessions.get(asked)?.["client_reference_id"]);
    const fields = { amount: 2_500, currency: "usd", customer: null, metadata: {}, payment_metadata: {} };
    g.stripe.books.expire(g.stripe.books.createSession({ ...fields, client_reference_id: topup }).id);
    await flush();
    expect(await topupState(asked)).toBe("open");
  });

  test("a second time for one top-up is credited once, and stays visible", async () => {
    const session = await g.session(key.api_key);
    g.stripe.books.pay(session);
    await flush();
    const [paid] = g.stripe.books.events.slice(-1);
    const object = { ...paid?.data.object, payment_intent: "pi_second" };
    expect(await g.endpoint(g.stripe.sign({ ...paid, id: "evt_second", data: { object } }))).toBe(200);
    expect(await balance()).toBe(dollars(25));
    expect((await paymentRow("pi_second"))?.problem).toMatch(/^paid 2500 cents for topup_.*, which pi_.* had paid$/);
  });

  test("of somebody else's, sold through the same account, is not ours to look at", async () => {
    const session = g.stripe.books.createSession({
      amount: 900,
      currency: "eur",
      customer: null,
      client_reference_id: "order-7",
      metadata: {},
      payment_metadata: {},
    });
    const payment = g.stripe.books.pay(session.id);
    g.stripe.books.refund(payment);
    expect(await flush()).toEqual([200, 200, 200]);
    expect(await paymentRow(payment)).toBeUndefined();
  });

  test("is not clawed back either, because it was never given", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key), { amount: 9_900 });
    g.stripe.books.refund(payment);
    await flush();
    expect([await balance(), await debt()]).toEqual([0n, 0n]);
  });
});
