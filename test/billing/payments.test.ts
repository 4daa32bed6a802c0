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
/** Leaves that much on the balance. */
async function spendAllBut(left: bigint): Promise<void> {
  const { adjust } = await import("#ledger/adjust.ts");
  const amount = mils(left - (await balance()));
  const reference = `adjust_${key.customer_id}_${Math.random()}`;
  await g.t.db.transaction(async (tx) => {
    await adjust(tx, { customer_id: key.customer_id, amount, reference, detail: "spent" });
    await tx.query(
      `INSERT INTO operator_actions (operator, action, customer_id, reason, reference) VALUES ('test', 'adjust', $1, 'spent', $2)`,
      [key.customer_id, reference],
    );
  });
}
const paymentRow = async (id: string) =>
  (
    await g.t.db.query<{ problem: string | null; credited_mils: bigint; credited_by_event: string | null }>(
      `SELECT problem, credited_mils, credited_by_event FROM payments WHERE id = $1`,
      [id],
    )
  )[0];
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
    await spendAllBut(0n);
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
    expect(await flush()).toEqual([200, 200]);
    expect(await paymentRow(payment)).toBeUndefined();
  });

  test("is not clawed back either, because it was never given", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key), { amount: 9_900 });
    g.stripe.books.refund(payment);
    await flush();
    expect([await balance(), await debt()]).toEqual([0n, 0n]);
  });
});

describe("a refund at Stripe", () => {
  test("is taken from the balance, in part and whole", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    g.stripe.books.refund(payment, 500);
    await flush();
    expect(await balance()).toBe(dollars(20));
    g.stripe.books.refund(payment, 700);
    g.stripe.books.refund(payment);
    await flush();
    expect([await balance(), await debt()]).toEqual([0n, 0n]);
  });

  test("of money that is spent becomes debt, and the balance stays at zero", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    await flush();
    await spendAllBut(30_000n);
    g.stripe.books.refund(payment);
    await flush();
    expect([await balance(), await debt()]).toEqual([0n, dollars(22)]);
  });

  test("told in any order, and twice, is taken once", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    g.stripe.books.refund(payment, 500);
    g.stripe.books.refund(payment, 700);
    const [paid, first, second] = g.stripe.outbox;
    if (!paid || !first || !second) throw new Error("expected three events");
    await g.stripe.deliver([second, first, paid, first, second, paid], g.endpoint);
    expect(await balance()).toBe(dollars(13));
  });

  test("told before its payment takes nothing until there is something to take", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    g.stripe.books.refund(payment);
    const [paid, refunded] = g.stripe.outbox;
    if (!paid || !refunded) throw new Error("expected two events");
    await g.stripe.deliver([refunded], g.endpoint);
    expect([await balance(), await debt()]).toEqual([0n, 0n]);
    await g.stripe.deliver([paid], g.endpoint);
    expect([await balance(), await debt()]).toEqual([0n, 0n]);
    expect(await paymentRow(payment)).toMatchObject({ credited_mils: 250_000n });
  });

  test("told at the same moment as its payment ends the same", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    g.stripe.books.refund(payment, 1_000);
    const signed = g.stripe.outbox.map((event) => g.stripe.sign(event));
    expect(await Promise.all([...signed, ...signed].map((one) => g.endpoint(one)))).toEqual([200, 200, 200, 200]);
    expect(await balance()).toBe(dollars(15));
  });
});

describe("a dispute", () => {
  test("takes the money at once; won, it comes back", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    const dispute = g.stripe.books.dispute(payment);
    await flush();
    expect(await balance()).toBe(0n);
    g.stripe.books.closeDispute(dispute, "won");
    await flush();
    expect([await balance(), await debt()]).toEqual([dollars(25), 0n]);
  });

  test("lost, it stays gone", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    g.stripe.books.closeDispute(g.stripe.books.dispute(payment), "lost");
    await flush();
    expect([await balance(), await debt()]).toEqual([0n, 0n]);
  });

  test("of spent money becomes debt; won, the debt is paid by it", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    await flush();
    await spendAllBut(50_000n);
    const dispute = g.stripe.books.dispute(payment);
    await flush();
    expect([await balance(), await debt()]).toEqual([0n, dollars(20)]);
    g.stripe.books.closeDispute(dispute, "won");
    await flush();
    expect([await balance(), await debt()]).toEqual([dollars(5), 0n]);
  });

  test("that is an inquiry takes nothing, and closes without a trace", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    const inquiry = g.stripe.books.dispute(payment, { status: "warning_needs_response" });
    await flush();
    expect(await balance()).toBe(dollars(25));
    g.stripe.books.closeDispute(inquiry, "warning_closed");
    await flush();
    expect(await balance()).toBe(dollars(25));
  });

  test("that was an inquiry takes the money when the bank insists", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    const inquiry = g.stripe.books.dispute(payment, { status: "warning_needs_response" });
    g.stripe.books.escalateDispute(inquiry);
    await flush();
    expect(await balance()).toBe(0n);
  });

  test.for(["won", "lost"] as const)("closed (%s) before it was told to be open ends the same", async (how) => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    g.stripe.books.closeDispute(g.stripe.books.dispute(payment), how);
    await g.stripe.deliver([...g.stripe.outbox].toReversed(), g.endpoint);
    expect([await balance(), await debt()]).toEqual([how === "won" ? dollars(25) : 0n, 0n]);
  });

  test("and a refund of one payment take no more than it brought", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    g.stripe.books.pay(await g.session(key.api_key, 1_000));
    g.stripe.books.refund(payment, 2_000);
    const dispute = g.stripe.books.dispute(payment);
    await flush();
    expect([await balance(), await debt()]).toEqual([dollars(10), 0n]);
    g.stripe.books.closeDispute(dispute, "won");
    await flush();
    expect([await balance(), await debt()]).toEqual([dollars(15), 0n]);
  });

  test("over a part takes that part", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    g.stripe.books.dispute(payment, { amount: 1_200 });
    await flush();
    expect(await balance()).toBe(dollars(13));
  });
});
