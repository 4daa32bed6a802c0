/** What Stripe takes back, by refunds and disputes, and gives back: as much as it says in the end, in whatever order. */
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
/** All of the outbox that is of this type. */
const told = (type: string) => g.stripe.outbox.filter((event) => event.type === type);

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
    await g.spendAllBut(key.customer_id, 30_000n);
    g.stripe.books.refund(payment);
    await flush();
    expect([await balance(), await debt()]).toEqual([0n, dollars(22)]);
  });

  test("told in any order, and twice, is taken once", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    g.stripe.books.refund(payment, 500);
    g.stripe.books.refund(payment, 700);
    const [paid, ...refunds] = g.stripe.outbox;
    const [first, second] = told("charge.refunded");
    if (!paid || !first || !second) throw new Error("expected three events");
    await g.stripe.deliver([second, first, paid, first, second, paid], g.endpoint);
    expect(await balance()).toBe(dollars(13));
    await g.stripe.deliver([...refunds, ...refunds.toReversed()], g.endpoint);
    expect(await balance()).toBe(dollars(13));
  });

  test("told before its payment takes nothing until there is something to take", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    g.stripe.books.refund(payment);
    const [paid, ...refunded] = g.stripe.outbox;
    if (!paid || refunded.length !== 2) throw new Error("expected three events");
    await g.stripe.deliver(refunded, g.endpoint);
    expect([await balance(), await debt()]).toEqual([0n, 0n]);
    await g.stripe.deliver([paid], g.endpoint);
    expect([await balance(), await debt()]).toEqual([0n, 0n]);
    expect(await g.payment(payment)).toMatchObject({ credited_mils: 250_000n });
  });

  test("told at the same moment as its payment ends the same", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    g.stripe.books.refund(payment, 1_000);
    const signed = g.stripe.outbox.map((event) => g.stripe.sign(event));
    expect(await Promise.all([...signed, ...signed].map((one) => g.endpoint(one)))).toEqual(
      Array.from({ length: 6 }, () => 200),
    );
    expect(await balance()).toBe(dollars(15));
  });

  test.for(["refund.created", "charge.refunded"])("told by %s alone is taken", async (type) => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    await flush();
    g.stripe.books.refund(payment, 800);
    await g.stripe.deliver(told(type), g.endpoint);
    expect(await balance()).toBe(dollars(17));
  });

  test.for(["failed", "canceled"] as const)("that is %s later gives the money back", async (how) => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    const refund = g.stripe.books.refund(payment, 800, "pending");
    g.stripe.books.refund(payment, 500);
    await flush();
    expect(await balance()).toBe(dollars(12));
    g.stripe.books.failRefund(refund, how);
    await flush();
    expect([await balance(), await debt()]).toEqual([dollars(20), 0n]);
    const { body } = await g.t.app.inject({
      url: "/v1/billing/transactions",
      headers: { authorization: `Bearer ${key.api_key}` },
    });
    expect(body).toContain("refund failed · $8.00");
  });

  test("that fails after the money was spent ends the debt that it had made", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    await flush();
    await g.spendAllBut(key.customer_id, 0n);
    const refund = g.stripe.books.refund(payment, 800);
    await flush();
    expect([await balance(), await debt()]).toEqual([0n, dollars(8)]);
    g.stripe.books.failRefund(refund);
    await flush();
    expect([await balance(), await debt()]).toEqual([0n, 0n]);
  });

  test.for(["charge.refund.updated", "refund.failed"])(
    "that failed is told by %s alone, in any order",
    async (type) => {
      const payment = g.stripe.books.pay(await g.session(key.api_key));
      g.stripe.books.failRefund(g.stripe.books.refund(payment, 800));
      g.stripe.books.refund(payment, 300);
      const [paid] = g.stripe.outbox;
      if (!paid) throw new Error("nothing was told");
      // The failure before anything that it is about.
      const events = [...told(type), ...told("charge.refunded").toReversed(), ...told("refund.created"), paid];
      await g.stripe.deliver(events, g.endpoint);
      expect([await balance(), await debt()]).toEqual([dollars(22), 0n]);
    },
  );

  test("that failed and was made again is taken once", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    g.stripe.books.failRefund(g.stripe.books.refund(payment));
    g.stripe.books.refund(payment);
    await flush();
    expect([await balance(), await debt()]).toEqual([0n, 0n]);
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
    await g.spendAllBut(key.customer_id, 50_000n);
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

  test("that was an inquiry and closed takes the money when the bank insists all the same", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    const inquiry = g.stripe.books.dispute(payment, { status: "warning_needs_response" });
    g.stripe.books.closeDispute(inquiry, "warning_closed");
    await flush();
    g.stripe.books.escalateDispute(inquiry);
    await flush();
    expect(await balance()).toBe(0n);
    g.stripe.books.closeDispute(inquiry, "won");
    await flush();
    expect(await balance()).toBe(dollars(25));
  });

  test("whose inquiry took the money and closed with it returned gives it back", async () => {
    const payment = g.stripe.books.pay(await g.session(key.api_key));
    const inquiry = g.stripe.books.dispute(payment, { status: "warning_needs_response" });
    const dispute = g.stripe.books.disputes.get(inquiry);
    await flush();
    const tell = (id: string, status: string, amounts: readonly number[]) => {
      const balance_transactions = amounts.map((amount) => ({ amount }));
      const object = { ...dispute, status, balance_transactions };
      return g.endpoint(g.stripe.sign({ id, type: "charge.dispute.updated", data: { object } }));
    };
    expect(await tell(`evt_1_${inquiry}`, "warning_under_review", [-2_500])).toBe(200);
    expect(await balance()).toBe(0n);
    expect(await tell(`evt_2_${inquiry}`, "warning_closed", [-2_500, 2_500])).toBe(200);
    expect(await balance()).toBe(dollars(25));
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
