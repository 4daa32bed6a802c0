import { afterAll, afterEach, beforeAll, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import { balanceOf, credit, transactionsOf } from "#ledger/ledger.ts";
import { priceFor } from "#billing/prices.ts";
import type { Database } from "#platform/database.ts";
import { accept, assertBooksBalance, newCustomer } from "#test/support/ledger.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase({ poolMax: 20 });
  ({ db } = database);
});
afterEach(() => assertBooksBalance(db));
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
