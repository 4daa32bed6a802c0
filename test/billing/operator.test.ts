import { afterAll, afterEach, beforeAll, expect, test } from "vitest";

import { adjustBalance, grantCredit } from "#billing/operator.ts";
import { readCustomer } from "#billing/overview.ts";
import { mils } from "#contract/mils.ts";
import { closeCustomer, reopenCustomer } from "#keys/close.ts";
import { accountsOf, balanceOf } from "#ledger/ledger.ts";
import type { Database } from "#platform/database.ts";
import { acceptRollout } from "#rollouts/accept.ts";
import { settle } from "#rollouts/settle.ts";
import { accept, assertBooksBalance, failed, newCustomer, newRollout } from "#test/support/ledger.ts";
import { createTestDatabase, type TestDatabase, untilWaitingForLocks } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase({ poolMax: 20 });
  ({ db } = database);
});
afterEach(() => assertBooksBalance(db));
afterAll(() => database.drop());

const by = (customer_id: string, reference: string) => ({
  customer_id,
  reference,
  operator: "ada",
  reason: "a broken robot",
});

const actionsOf = (customerId: string): Promise<{ action: string; reference: string }[]> =>
  db.query(
    "SELECT operator, action, reason, reference, details FROM operator_actions WHERE customer_id = $1 ORDER BY id",
    [customerId],
  );

test("a grant is a credit with who gave it and why on record", async () => {
  const { customer_id } = await newCustomer(db, mils(100));
  expect(await grantCredit(db, { ...by(customer_id, "grant_1"), amount: mils(50) })).toEqual({
    credited: true,
    balance_mils: 150n,
  });
  expect(await actionsOf(customer_id)).toEqual([
    {
      operator: "ada",
      action: "credits grant",
      reason: "a broken robot",
      reference: "grant_1",
      details: { amount_mils: 50 },
    },
  ]);
});

test("the same grant from many terminals at once is credited and recorded once", async () => {
  const { customer_id } = await newCustomer(db, mils(0));
  const grants = await Promise.all(
    Array.from({ length: 8 }, () => grantCredit(db, { ...by(customer_id, "grant_2"), amount: mils(50) })),
  );
  expect(grants.filter(({ credited }) => credited)).toHaveLength(1);
  expect(await balanceOf(db, customer_id)).toBe(50n);
  expect(await actionsOf(customer_id)).toHaveLength(1);
});

test("a reference that was granted before as something else is an error", async () => {
  const [one, other] = [await newCustomer(db, mils(0)), await newCustomer(db, mils(0))];
  await grantCredit(db, { ...by(one.customer_id, "grant_3"), amount: mils(50) });
  await expect(grantCredit(db, { ...by(one.customer_id, "grant_3"), amount: mils(51) })).rejects.toThrow(
    "was credited before as 50 mils",
  );
  await expect(grantCredit(db, { ...by(other.customer_id, "grant_3"), amount: mils(50) })).rejects.toThrow(
    `to ${one.customer_id}`,
  );
  expect(await balanceOf(db, other.customer_id)).toBe(0n);
});

test("an adjustment goes up or down, never below zero, and is recorded with its entry or not at all", async () => {
  const { customer_id } = await newCustomer(db, mils(100));
  expect(await adjustBalance(db, { ...by(customer_id, "adjust_1"), amount: mils(-40) })).toEqual({
    adjusted: true,
    balance_mils: 60n,
  });
  await expect(adjustBalance(db, { ...by(customer_id, "adjust_2"), amount: mils(-61) })).rejects.toMatchObject({
    code: "insufficient_credits",
  });
  await adjustBalance(db, { ...by(customer_id, "adjust_3"), amount: mils(5) });
  expect(await balanceOf(db, customer_id)).toBe(65n);
  expect((await actionsOf(customer_id)).map(({ reference }) => reference)).toEqual(["adjust_1", "adjust_3"]);
});

test("the same adjustment at once from many terminals is made once; another under its reference is an error", async () => {
  const { customer_id } = await newCustomer(db, mils(100));
  const adjust = (amount: number) => adjustBalance(db, { ...by(customer_id, "adjust_4"), amount: mils(amount) });
  const results = await Promise.all(Array.from({ length: 8 }, () => adjust(-10)));
  expect(results.filter(({ adjusted }) => adjusted)).toHaveLength(1);
  expect(await balanceOf(db, customer_id)).toBe(90n);
  await expect(adjust(-11)).rejects.toThrow("expected a reference of its own");
});

test("what is given to a customer in debt pays the debt first", async () => {
  const { customer_id } = await newCustomer(db, mils(0));
  await db.query("SELECT post_ledger_entry($1, 'debt', 'clawback', 100, 'test', 'taken back')", [customer_id]);
  expect(await adjustBalance(db, { ...by(customer_id, "adjust_5"), amount: mils(60) })).toMatchObject({
    balance_mils: 0n,
  });
  expect(await grantCredit(db, { ...by(customer_id, "grant_5"), amount: mils(60) })).toMatchObject({
    balance_mils: 20n,
  });
  expect(await accountsOf(db, customer_id)).toEqual({ balance_mils: 20n, debt_mils: 0n });
});

test.for(["", "   ", "two\nlines", "a separator \u001f", "x".repeat(301)])(
  "a reason or a reference like %j is refused",
  async (text) => {
    const { customer_id } = await newCustomer(db, mils(10));
    for (const move of [grantCredit, adjustBalance]) {
      const reasoned = move(db, { ...by(customer_id, "grant_6"), reason: text, amount: mils(1) });
      await expect(reasoned).rejects.toThrow("expected a reason of one line");
      const referred = move(db, { ...by(customer_id, text), amount: mils(1) });
      await expect(referred).rejects.toThrow("expected a reference of one line");
    }
    expect(await balanceOf(db, customer_id)).toBe(10n);
  },
);

test("closing a customer ends every key; what runs is settled and refunded", async () => {
  const key = await newCustomer(db, mils(490));
  const rollout = await accept(db, key);
  expect(await db.transaction((tx) => closeCustomer(tx, key.customer_id))).toMatchObject({ keys_revoked: 1 });
  await expect(acceptRollout(db, newRollout(key))).rejects.toMatchObject({ code: "revoked_key" });
  await settle(db, rollout.id, null, failed());
  expect(await balanceOf(db, key.customer_id)).toBe(490n);
  // Again changes nothing; reopening brings no key back.
  expect(await db.transaction((tx) => closeCustomer(tx, key.customer_id))).toMatchObject({ keys_revoked: 0 });
  await db.transaction((tx) => reopenCustomer(tx, key.customer_id));
  await expect(acceptRollout(db, newRollout(key))).rejects.toMatchObject({ code: "revoked_key" });
});

test("a debit under way is waited for, and none comes after the customer was closed", async () => {
  const key = await newCustomer(db, mils(10_000));
  const closing = await db.transaction(async (tx) => {
    await acceptRollout(tx, newRollout(key));
    const closed = db.transaction((other) => closeCustomer(other, key.customer_id));
    await untilWaitingForLocks(db, 1);
    return { closed };
  });
  await closing.closed;
  expect(await balanceOf(db, key.customer_id)).toBe(9_755n);
  await expect(acceptRollout(db, newRollout(key))).rejects.toMatchObject({ code: "revoked_key" });
});

test("an operator sees of a customer what a question may be about", async () => {
  const key = await newCustomer(db, mils(10_000));
  const rollout = await accept(db, key);
  await settle(db, rollout.id, null, failed(9));
  await accept(db, key);
  await adjustBalance(db, { ...by(key.customer_id, "adjust_6"), amount: mils(7) });
  await db.query(
    `INSERT INTO topups (id, customer_id, request_id, amount_cents, state)
     VALUES ('topup_00000000000000000000000000000001', $1, 'req_1', 500, 'paid')`,
    [key.customer_id],
  );
  await db.query(
    `INSERT INTO payments (id, topup_id, paid_cents, problem)
     VALUES ('pi_1', 'topup_00000000000000000000000000000001', 500, 'paid in eur, expected usd')`,
  );

  expect(await readCustomer(db, key.customer_id)).toMatchObject({
    customer_id: key.customer_id,
    balance_mils: 10_000n - 45n - 245n + 7n,
    debt_mils: 0n,
    closed_at: null,
    mils_per_frame: 5,
    keys: [{ key_id: key.key_id }],
    rollouts: [
      { status: "failed", count: 1, earned_mils: 45n },
      { status: "queued", count: 1, earned_mils: 245n },
    ],
    topups: [{ payment_id: "pi_1", amount_cents: 500, state: "paid", problem: "paid in eur, expected usd" }],
    entries: [{ kind: "adjustment" }, { kind: "debit" }, { kind: "refund" }, { kind: "debit" }, { kind: "credit" }],
    actions: [{ action: "credits adjust", operator: "ada", reason: "a broken robot" }],
  });
  expect(await readCustomer(db, "cus_nobody")).toBeNull();
});
