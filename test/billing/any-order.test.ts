/**
 * Whatever happened to a payment, the books end the same: told in order or in any other, once or several times, one after
 * another or at once. A failing seed replays (fast-check prints it).
 */
import { randomBytes } from "node:crypto";

import * as fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";

import { takeEvent } from "#billing/take-event.ts";
import { beginTopup, storeSession } from "#billing/topups.ts";
import { mils } from "#contract/mils.ts";
import { accountsOf } from "#ledger/ledger.ts";
import { systemClock } from "#platform/clock.ts";
import { assertBooksBalance, newCustomer } from "#test/support/ledger.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";
import { createStripeBooks } from "#test/support/stripe/books.ts";
import type { StripeEvent } from "#test/support/stripe/objects.ts";

const RUNS = 60;

let database: TestDatabase;
beforeAll(async () => {
  database = await createTestDatabase({ poolMax: 8 });
});
afterAll(() => database.drop());

interface PaymentStory {
  readonly cents: number;
  readonly method: "card" | "bank, arrives" | "bank, fails" | "nobody pays";
  /** Parts of what is left, in percent. */
  readonly refunds: readonly { readonly percent: number; readonly fails: boolean }[];
  readonly dispute: null | {
    readonly percent: number;
    readonly begins: "inquiry" | "dispute";
    readonly insists: boolean;
    /** The inquiry is closed first, and the bank insists all the same. */
    readonly late: boolean;
    readonly ends: "open" | "won" | "lost";
  };
}

const payment: fc.Arbitrary<PaymentStory> = fc.record({
  cents: fc.integer({ min: 500, max: 20_000 }),
  method: fc.constantFrom("card", "card", "bank, arrives", "bank, fails", "nobody pays"),
  refunds: fc.array(fc.record({ percent: fc.integer({ min: 1, max: 100 }), fails: fc.boolean() }), { maxLength: 3 }),
  dispute: fc.option(
    fc.record({
      percent: fc.integer({ min: 1, max: 100 }),
      begins: fc.constantFrom("inquiry", "dispute"),
      insists: fc.boolean(),
      late: fc.boolean(),
      ends: fc.constantFrom("open", "won", "lost"),
    }),
  ),
});

interface Telling {
  /** Which event goes where, and which are told again. */
  readonly order: readonly number[];
  readonly again: readonly number[];
  readonly at_once: number;
}

const telling: fc.Arbitrary<Telling> = fc.record({
  order: fc.array(fc.nat(), { minLength: 60, maxLength: 60 }),
  again: fc.array(fc.nat(), { maxLength: 8 }),
  at_once: fc.integer({ min: 1, max: 6 }),
});

/** Tells the story to Stripe's side alone; gives its events in order, and what is ours in the end (cents). */
async function live(
  customer_id: string,
  story: readonly PaymentStory[],
): Promise<{ events: StripeEvent[]; cents: number }> {
  const books = createStripeBooks({
    now: () => systemClock.now(),
    live: false,
    payUrl: "http://pay.test",
    onEvent: () => undefined,
  });
  let cents = 0;
  for (const one of story) {
    const row = { customer_id, request_id: "req_story", amount_cents: one.cents, idempotency_key: null };
    const topup = await beginTopup(database.db, row, randomBytes);
    const metadata = { topup_id: topup.id, customer_id };
    const session = books.createSession({
      amount: one.cents,
      currency: "usd",
      customer: null,
      client_reference_id: topup.id,
      metadata,
      payment_metadata: metadata,
    });
    await storeSession(database.db, topup.id, { id: session.id, url: session.url ?? "" });
    cents += play(books, session.id, one);
  }
  return { events: [...books.events], cents };
}

function play(books: ReturnType<typeof createStripeBooks>, session: string, one: PaymentStory): number {
  if (one.method === "nobody pays") {
    books.expire(session);
    return 0;
  }
  const id = books.pay(session, { arrives: one.method === "card" ? "now" : "later" });
  if (one.method === "bank, fails") {
    books.arrive(session, "failed");
    return 0;
  }
  if (one.method === "bank, arrives") books.arrive(session, "succeeded");
  let left = one.cents;
  let disputed = 0;
  const { dispute } = one;
  const amount = dispute ? Math.max(1, Math.floor((one.cents * dispute.percent) / 100)) : 0;
  const disputeId = dispute
    ? books.dispute(id, { amount, status: dispute.begins === "inquiry" ? "warning_needs_response" : "needs_response" })
    : "";
  const failing: { id: string; part: number }[] = [];
  for (const { percent, fails } of one.refunds) {
    const part = Math.floor((left * percent) / 100);
    if (part === 0) continue;
    const refund = books.refund(id, part, fails ? "pending" : "succeeded");
    if (fails) failing.push({ id: refund, part });
    left -= part;
  }
  if (dispute) {
    const taken = dispute.begins === "dispute" || dispute.insists;
    if (dispute.begins === "inquiry" && dispute.insists) {
      if (dispute.late) books.closeDispute(disputeId, "warning_closed");
      books.escalateDispute(disputeId);
    }
    if (dispute.ends !== "open") {
      if (taken) books.closeDispute(disputeId, dispute.ends);
      else books.closeDispute(disputeId, "warning_closed");
    }
    disputed = taken && dispute.ends !== "won" ? amount : 0;
  }
  for (const refund of failing) {
    books.failRefund(refund.id);
    left += refund.part;
  }
  return Math.max(0, left - disputed);
}

function retold(events: readonly StripeEvent[], { order, again }: Telling): StripeEvent[] {
  const told = [...events, ...again.flatMap((n) => events[n % Math.max(1, events.length)] ?? [])];
  const place = told.map((event, index) => ({ event, key: order[index % order.length] ?? 0 }));
  return place.toSorted((a, b) => a.key - b.key).map(({ event }) => event);
}

async function tell(events: readonly StripeEvent[], atOnce: number): Promise<void> {
  const parts = { db: database.db, log: silentLog, moved: () => undefined };
  for (let i = 0; i < events.length; i += atOnce) {
    await Promise.all(events.slice(i, i + atOnce).map((event) => takeEvent(parts, { ...event, account: null })));
  }
}

test("any order, repetition and concurrency of a story's events ends in the same books", { timeout: 120_000 }, () =>
  fc
    .assert(
      fc.asyncProperty(
        fc.array(payment, { minLength: 1, maxLength: 3 }),
        telling,
        fc.integer({ min: 0, max: 100_000 }),
        async (story, how, credits) => {
          const [ordered, shuffled] = [
            await newCustomer(database.db, mils(credits)),
            await newCustomer(database.db, mils(credits)),
          ];
          const [first, second] = [await live(ordered.customer_id, story), await live(shuffled.customer_id, story)];
          await tell(first.events, 1);
          await tell(retold(second.events, how), how.at_once);
          const ends = [ordered, shuffled].map(({ customer_id }) => accountsOf(database.db, customer_id));
          const expected = { balance_mils: mils(credits + first.cents * 100), debt_mils: 0n };
          expect(await Promise.all(ends)).toEqual([expected, expected]);
        },
      ),
      { numRuns: RUNS },
    )
    .then(() => assertBooksBalance(database.db)),
);

test("the same, where everything was spent before it was taken back", { timeout: 120_000 }, () =>
  fc
    .assert(
      fc.asyncProperty(payment, telling, async (one, how) => {
        // The payment arrives and is spent in full; then Stripe's whole story is told, that payment included, in any order.
        const customer = await newCustomer(database.db, mils(0));
        const { events, cents } = await live(customer.customer_id, [{ ...one, method: "card" }]);
        await tell(events.slice(0, 1), 1);
        const spent = mils(one.cents * 100);
        await spend(customer.customer_id, spent);
        await tell(retold(events, how), how.at_once);
        expect(await accountsOf(database.db, customer.customer_id)).toEqual({
          balance_mils: 0n,
          debt_mils: mils(one.cents * 100 - cents * 100),
        });
      }),
      { numRuns: RUNS },
    )
    .then(() => assertBooksBalance(database.db)),
);

/** As an operator would; the customer has nothing left afterwards. */
async function spend(customer_id: string, amount: bigint): Promise<void> {
  const { adjustBalance } = await import("#billing/operator.ts");
  await adjustBalance(database.db, {
    customer_id,
    amount: mils(-amount),
    operator: "test",
    reason: "spent",
    reference: `adjust_${customer_id}`,
  });
}
