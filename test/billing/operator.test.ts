import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";

import { adjustBalance, debtRepaidBy, grantCredit } from "#billing/operator.ts";
import { readCustomer } from "#billing/overview.ts";
import { mils } from "#contract/mils.ts";
import { closeCustomer, reopenCustomer } from "#keys/close.ts";
import { accountsOf, balanceOf } from "#ledger/ledger.ts";
import type { Database } from "#platform/database.ts";
import { acceptRollout } from "#rollouts/accept.ts";
import { settle } from "#rollouts/settle.ts";
import { accept, assertBooksBalance, failed, newCustomer, newRollout, owe } from "#test/support/ledger.ts";
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

/** After that by which the customer got the key. */
const actionsOf = (customerId: string): Promise<{ action: string; reference: string }[]> =>
  db.query(
    `SELECT operator, action, reason, reference, details FROM operator_actions
      WHERE customer_id = $1 AND action <> 'keys create' ORDER BY id`,
    [customerId],
  );

/** The database as somebody sees whose transactions end when `gate` does; `entered` resolves when one has come so far. */
function slowly(gate: Promise<void>): { slow: Database; entered: Promise<void> } {
  const entered = Promise.withResolvers<void>();
  const slow: Database = {
    ...db,
    transaction: (run) =>
      db.transaction(async (tx) => {
        const result = await run(tx);
        entered.resolve();
        await gate;
        return result;
      }),
  };
  return { slow, entered: entered.promise };
}

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

test("a reference that was granted before as something else is refused in a sentence", async () => {
  const [one, other] = [await newCustomer(db, mils(0)), await newCustomer(db, mils(0))];
  await grantCredit(db, { ...by(one.customer_id, "grant_3"), amount: mils(50) });
  const more = grantCredit(db, { ...by(one.customer_id, "grant_3"), amount: mils(51) });
  await expect(more).rejects.toMatchObject({
    code: "invalid_request",
    message:
      `grant_3 stands for a credit of $0.0050 to ${one.customer_id}, not for a credit of $0.0051 to ${one.customer_id}: ` +
      `expected a reference of its own`,
  });
  for (const move of [grantCredit, adjustBalance]) {
    const moved = move(db, { ...by(other.customer_id, "grant_3"), amount: mils(50) });
    await expect(moved).rejects.toMatchObject({ code: "invalid_request" });
  }
  expect(await balanceOf(db, other.customer_id)).toBe(0n);
  expect(await actionsOf(other.customer_id)).toEqual([]);
});

describe.for([
  ["grant", grantCredit, "credited"],
  ["adjustment", adjustBalance, "adjusted"],
] as const)("two commands at once with one reference, a %s", ([name, move, done]) => {
  test("the second waits for the first, finds it done, and does nothing", async () => {
    const { customer_id } = await newCustomer(db, mils(0));
    const gate = Promise.withResolvers<void>();
    const { slow, entered } = slowly(gate.promise);
    const asked = { ...by(customer_id, `${name}_twice`), amount: mils(50) };
    const first = move(slow, asked);
    await entered;
    const second = move(db, asked);
    await untilWaitingForLocks(db, 1);
    gate.resolve();
    expect(await first).toEqual({ [done]: true, balance_mils: 50n });
    expect(await second).toEqual({ [done]: false, balance_mils: 50n });
    expect(await actionsOf(customer_id)).toHaveLength(1);
  });

  test("for two customers, the second is refused with what the reference stands for", async () => {
    const [one, other] = [await newCustomer(db, mils(0)), await newCustomer(db, mils(0))];
    const gate = Promise.withResolvers<void>();
    const { slow, entered } = slowly(gate.promise);
    const first = move(slow, { ...by(one.customer_id, `${name}_race`), amount: mils(50) });
    await entered;
    const second = move(db, { ...by(other.customer_id, `${name}_race`), amount: mils(50) });
    const answers = Promise.allSettled([first, second]);
    await untilWaitingForLocks(db, 1);
    gate.resolve();
    const message = expect.stringContaining(`to ${one.customer_id}, not for`) as string;
    expect(await answers).toMatchObject([
      { status: "fulfilled", value: { balance_mils: 50n } },
      { status: "rejected", reason: { code: "invalid_request", message } },
    ]);
    expect(await balanceOf(db, other.customer_id)).toBe(0n);
  });

  test("many, for many customers, move one balance", async () => {
    const keys = await Promise.all(Array.from({ length: 8 }, () => newCustomer(db, mils(0))));
    const results = await Promise.allSettled(
      keys.map(({ customer_id }) => move(db, { ...by(customer_id, `${name}_many`), amount: mils(50) })),
    );
    const refusals = results.flatMap((result) => (result.status === "rejected" ? [result.reason as unknown] : []));
    expect(refusals).toHaveLength(7);
    for (const refusal of refusals) expect(refusal).toMatchObject({ code: "invalid_request" });
  });
});

test("nobody who does not exist is given anything", async () => {
  for (const move of [grantCredit, adjustBalance]) {
    const moved = move(db, { ...by("cus_nobody", "grant_nobody"), amount: mils(50) });
    await expect(moved).rejects.toMatchObject({ code: "not_found" });
  }
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
  await owe(db, customer_id, 1);
  expect(await adjustBalance(db, { ...by(customer_id, "adjust_5"), amount: mils(60) })).toMatchObject({
    balance_mils: 0n,
  });
  expect(await grantCredit(db, { ...by(customer_id, "grant_5"), amount: mils(60) })).toMatchObject({
    balance_mils: 20n,
  });
  expect(await accountsOf(db, customer_id)).toEqual({ balance_mils: 20n, debt_mils: 0n });
  expect(await debtRepaidBy(db, customer_id, "adjust_5")).toBe(60n);
  expect(await debtRepaidBy(db, customer_id, "grant_5")).toBe(40n);
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
      { status: "queued", count: 1, earned_mils: 0n }, // it may be refunded yet
    ],
    topups: [{ payment_id: "pi_1", amount_cents: 500, state: "paid", problem: "paid in eur, expected usd" }],
    entries: [{ kind: "adjustment" }, { kind: "debit" }, { kind: "refund" }, { kind: "debit" }, { kind: "credit" }],
    actions: [{ action: "credits adjust", operator: "ada", reason: "a broken robot" }, { action: "keys create" }],
  });
  expect(await readCustomer(db, "cus_nobody")).toBeNull();
});

test("the last entries of both accounts are shown together, newest first, and ten of them", async () => {
  const { customer_id } = await newCustomer(db, mils(0));
  for (let n = 0; n < 12; n++) {
    await grantCredit(db, { ...by(customer_id, `grant_of_${n}`), amount: mils(1) });
  }
  await adjustBalance(db, { ...by(customer_id, "adjust_all"), amount: mils(-12) });
  await owe(db, customer_id, 1);
  await grantCredit(db, { ...by(customer_id, "grant_after"), amount: mils(30) });
  const shown = await readCustomer(db, customer_id);
  expect(shown?.entries.map(({ account, kind, amount_mils }) => `${account} ${kind} ${amount_mils}`)).toEqual([
    "debt clawback -30",
    "balance clawback -30",
    "balance credit 30",
    "debt clawback 100",
    "balance adjustment -100",
    "balance credit 100",
    "balance adjustment -12",
    "balance credit 1",
    "balance credit 1",
    "balance credit 1",
  ]);
});
