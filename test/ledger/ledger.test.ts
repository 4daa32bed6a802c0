import { afterAll, afterEach, beforeAll, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import { balanceOf, credit, transactionsOf } from "#ledger/ledger.ts";
import { priceFor } from "#billing/prices.ts";
import type { Database } from "#platform/database.ts";
import { accept, assertBooksBalance, newCustomer } from "#test/support/ledger.ts";
import { createTestDatabase, type TestDatabase, untilWaitingForLocks } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase({ poolMax: 20 });
  ({ db } = database);
});
// Nobody made the payments that are credited here.
afterEach(() => assertBooksBalance(db, { madeUp: /credit evt_\S+ of \d+ mils has neither a payment nor/ }));
afterAll(() => database.drop());

test("a statement lists the newest entry first, each with the balance after it", async () => {
  const { customer_id, key_id } = await newCustomer(db, mils(1_000));
  await accept(db, { customer_id, key_id });
  await credit(db, { customer_id, amount: mils(7), reference: "evt_1", detail: "top-up" });

  const entries = await transactionsOf(db, customer_id, 200);
  expect(
    entries.map(({ seq, kind, amount_mils, balance_after_mils }) => [seq, kind, amount_mils, balance_after_mils]),
  ).toEqual([
    [3n, "credit", 7n, 762n],
    [2n, "debit", -245n, 755n],
    [1n, "credit", 1_000n, 1_000n],
  ]);
  expect(entries[0]).toMatchObject({ reference: "evt_1", detail: "top-up", rollout_id: null });
  expect(await transactionsOf(db, customer_id, 1)).toHaveLength(1);
});

test("a payment that is reported many times, also at once, is credited once", async () => {
  const { customer_id } = await newCustomer(db, mils(0));
  const payment = { customer_id, amount: mils(50_000), reference: "evt_twice", detail: "top-up" };
  const results = await Promise.all(Array.from({ length: 10 }, () => credit(db, payment)));
  expect(results.filter(({ credited }) => credited)).toHaveLength(1);
  expect(await credit(db, payment)).toEqual({ credited: false, balance_mils: 50_000n });
  expect(await balanceOf(db, customer_id)).toBe(50_000n);
});

test("the same payment with another amount or customer is an error, not a repetition", async () => {
  const [one, two] = [await newCustomer(db, mils(0)), await newCustomer(db, mils(0))];
  const payment = { customer_id: one.customer_id, amount: mils(500), reference: "evt_other", detail: "top-up" };
  await credit(db, payment);
  await expect(credit(db, { ...payment, amount: mils(501) })).rejects.toThrow(/credited before as 500 mils/);
  await expect(credit(db, { ...payment, customer_id: two.customer_id })).rejects.toThrow(/credited before/);
  expect(await balanceOf(db, two.customer_id)).toBe(0n);
});

test("a repeated payment fails nothing inside a transaction, and another credit under its reference says why not", async () => {
  const [one, two] = [await newCustomer(db, mils(0)), await newCustomer(db, mils(0))];
  const payment = { customer_id: one.customer_id, amount: mils(500), reference: "evt_within", detail: "top-up" };
  await credit(db, payment);
  const after = await db.transaction(async (tx) => {
    expect(await credit(tx, payment)).toEqual({ credited: false, balance_mils: 500n });
    const other = { ...payment, customer_id: two.customer_id };
    await expect(credit(tx, other)).rejects.toThrow(
      `credited before as 500 mils to ${one.customer_id}, not 500 mils to ${two.customer_id}`,
    );
    return credit(tx, { ...payment, reference: "evt_within_next", amount: mils(7) });
  });
  expect(after).toEqual({ credited: true, balance_mils: 507n });
  expect(await balanceOf(db, two.customer_id)).toBe(0n);
});

test.each([
  ["commits", "nothing is added", { status: "fulfilled", value: { credited: false } }, "rejected"],
  ["fails", "one of those after it is credited", {}, expect.any(String)],
])(
  "a reference that another transaction credits just then is waited for: when it %s, %s",
  async (end, _, same, other) => {
    const [one, two] = [await newCustomer(db, mils(0)), await newCustomer(db, mils(0))];
    const payment = { customer_id: one.customer_id, amount: mils(500), reference: `evt_met_${end}`, detail: "top-up" };
    const entered = Promise.withResolvers<void>();
    const ended = Promise.withResolvers<void>();
    const first = db.transaction(async (tx) => {
      await credit(tx, payment);
      entered.resolve();
      await ended.promise;
      if (end === "fails") throw new Error("not after all");
    });
    await entered.promise;
    const results = Promise.allSettled([
      first,
      db.transaction((tx) => credit(tx, payment)),
      db.transaction((tx) => credit(tx, { ...payment, customer_id: two.customer_id })),
    ]);
    await untilWaitingForLocks(db, 2);
    ended.resolve();
    const [, ofSame, ofOther] = await results;
    expect(ofSame).toMatchObject(same);
    expect(ofOther.status).toEqual(other);
    // Whoever came first is credited, and nobody else's balance has moved.
    expect((await balanceOf(db, one.customer_id)) + (await balanceOf(db, two.customer_id))).toBe(500n);
  },
);

test("refuses credits of nothing or less, and unknown customers", async () => {
  const { customer_id } = await newCustomer(db, mils(0));
  for (const amount of [0n, -5n]) {
    await expect(credit(db, { customer_id, amount: mils(amount), reference: "x", detail: "x" })).rejects.toThrow(
      RangeError,
    );
  }
  const nobody = { customer_id: "cus_nobody", amount: mils(1), reference: "evt_nobody", detail: "x" };
  await expect(credit(db, nobody)).rejects.toMatchObject({ code: "not_found" });
  await expect(balanceOf(db, "cus_nobody")).rejects.toMatchObject({ code: "not_found" });
});

test("amounts beyond what a double holds stay exact", async () => {
  const { customer_id } = await newCustomer(db, mils(0));
  const large = 2n ** 60n + 1n;
  await credit(db, { customer_id, amount: mils(large), reference: "evt_large", detail: "large" });
  await credit(db, { customer_id, amount: mils(1), reference: "evt_one_more", detail: "one more" });
  expect(await balanceOf(db, customer_id)).toBe(large + 1n);
});

test("entries cannot be changed, removed or truncated", async () => {
  await newCustomer(db, mils(5));
  await expect(db.query("UPDATE ledger_entries SET amount_mils = 6")).rejects.toThrow(/append-only/);
  await expect(db.query("DELETE FROM ledger_entries")).rejects.toThrow(/append-only/);
  await expect(db.query("TRUNCATE ledger_entries CASCADE")).rejects.toThrow(/append-only/);
});

test("a field with the hash's separator is refused", async () => {
  const { customer_id } = await newCustomer(db, mils(5));
  await expect(credit(db, { customer_id, amount: mils(1), reference: "evt\u001fx", detail: "x" })).rejects.toThrow(
    /check constraint/,
  );
});

test("the list price is 5 mils a frame", async () => {
  const { customer_id } = await newCustomer(db);
  expect(await priceFor(db, customer_id)).toBe(5);
  expect(await priceFor(db, null)).toBe(5);
});
