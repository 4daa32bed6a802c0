/** Clawbacks, debt and who pays it; adjustments. After each test the auditor finds nothing. */
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import { adjust } from "#ledger/adjust.ts";
import { clawBack, reinstate } from "#ledger/clawback.ts";
import { accountsOf, credit } from "#ledger/ledger.ts";
import type { Database } from "#platform/database.ts";
import { settle } from "#rollouts/settle.ts";
import { accept, assertBooksBalance, CHARGE, cancelled, newCustomer, newRollout } from "#test/support/ledger.ts";
import { acceptRollout } from "#rollouts/accept.ts";
import { createTestDatabase, type TestDatabase, untilWaitingForLocks } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase({ poolMax: 20 });
  ({ db } = database);
});
// Clawbacks here are of payments that nobody made: they may owe nothing but the payment.
afterEach(() =>
  assertBooksBalance(db, {
    madeUp: /credit paid_|clawback paid_\w+ of \d+ mils, and there is no payment|as paid_\w+, and the|clawbacks paid_/,
  }),
);
afterAll(() => database.drop());

interface Row {
  account: string;
  kind: string;
  amount_mils: bigint;
  balance_after_mils: bigint;
  reference: string;
  detail: string;
}

const entriesOf = (customer: string): Promise<Row[]> =>
  db.query(
    `SELECT account, kind, amount_mils, balance_after_mils, reference, detail FROM ledger_entries
      WHERE customer_id = $1 ORDER BY account, seq`,
    [customer],
  );

/** What stands beside each adjustment. */
const recordAction = (customer: string, reference: string, mils: number): Promise<unknown> =>
  db.query(
    `INSERT INTO operator_actions (operator, action, customer_id, reason, reference, details)
     VALUES ('ops', 'adjust', $1, 'a correction', $2, jsonb_build_object('amount_mils', $3::bigint))`,
    [customer, reference, mils],
  );

const shortly = (rows: readonly Row[]): string[] =>
  rows.map((row) => `${row.account} ${row.kind} ${row.amount_mils} → ${row.balance_after_mils} (${row.reference})`);

test("a clawback that the balance covers takes it from the balance and leaves no debt", async () => {
  const { customer_id } = await newCustomer(db, mils(1_000));
  const taken = await clawBack(db, { customer_id, amount: mils(400), reference: "paid_a", detail: "refund of top-up" });
  expect(taken).toEqual({ from_balance: 400n, to_debt: 0n });
  expect(await accountsOf(db, customer_id)).toEqual({ balance_mils: 600n, debt_mils: 0n });
});

test("a clawback beyond the balance empties it, and the rest is a recorded debt", async () => {
  const { customer_id } = await newCustomer(db, mils(300));
  const taken = await clawBack(db, { customer_id, amount: mils(1_000), reference: "paid_b", detail: "dispute" });
  expect(taken).toEqual({ from_balance: 300n, to_debt: 700n });
  expect(await accountsOf(db, customer_id)).toEqual({ balance_mils: 0n, debt_mils: 700n });
  expect(shortly(await entriesOf(customer_id)).slice(1)).toEqual([
    "balance clawback -300 → 0 (paid_b)",
    "debt clawback 700 → 700 (paid_b)",
  ]);
});

test("a clawback from an empty balance writes no entry of nothing", async () => {
  const { customer_id } = await newCustomer(db, mils(0));
  await clawBack(db, { customer_id, amount: mils(5), reference: "paid_c", detail: "dispute" });
  expect(shortly(await entriesOf(customer_id))).toEqual(["debt clawback 5 → 5 (paid_c)"]);
});

test("a credit pays the debt first and returns the balance that is left", async () => {
  const { customer_id } = await newCustomer(db, mils(0));
  await clawBack(db, { customer_id, amount: mils(700), reference: "paid_d", detail: "dispute" });
  const part = { customer_id, amount: mils(200), reference: "paid_e", detail: "top-up" };
  expect(await credit(db, part)).toEqual({ credited: true, balance_mils: 0n });
  expect(await accountsOf(db, customer_id)).toEqual({ balance_mils: 0n, debt_mils: 500n });
  const more = { customer_id, amount: mils(800), reference: "paid_f", detail: "top-up" };
  expect(await credit(db, more)).toEqual({ credited: true, balance_mils: 300n });
  expect(await accountsOf(db, customer_id)).toEqual({ balance_mils: 300n, debt_mils: 0n });
  expect(shortly(await entriesOf(customer_id))).toEqual([
    "balance credit 200 → 200 (paid_e)",
    "balance clawback -200 → 0 (paid_e)",
    "balance credit 800 → 800 (paid_f)",
    "balance clawback -500 → 300 (paid_f)",
    "debt clawback 700 → 700 (paid_d)",
    "debt clawback -200 → 500 (paid_e)",
    "debt clawback -500 → 0 (paid_f)",
  ]);
});

test("what is reinstated pays debt first, and leaves nothing clawed back", async () => {
  const { customer_id } = await newCustomer(db, mils(30));
  const dispute = { customer_id, amount: mils(100), reference: "paid_g", detail: "dispute" };
  await clawBack(db, dispute);
  expect(await accountsOf(db, customer_id)).toEqual({ balance_mils: 0n, debt_mils: 70n });
  await reinstate(db, { ...dispute, detail: "dispute won" });
  expect(await accountsOf(db, customer_id)).toEqual({ balance_mils: 30n, debt_mils: 0n });
  const [sums] = await db.query<{ clawed_back: string }>(
    `SELECT sum(CASE account WHEN 'debt' THEN amount_mils ELSE -amount_mils END) AS clawed_back
       FROM ledger_entries WHERE reference = 'paid_g' AND kind = 'clawback'`,
  );
  expect(sums?.clawed_back).toBe("0");
});

test("the refund of an indebted customer's rollout is a row of its own, and pays the debt in the same statement", async () => {
  const key = await newCustomer(db, mils(1_000));
  const rollout = await accept(db, key);
  await clawBack(db, { customer_id: key.customer_id, amount: mils(1_000), reference: "paid_h", detail: "dispute" });
  expect(await accountsOf(db, key.customer_id)).toEqual({ balance_mils: 0n, debt_mils: CHARGE });

  await settle(db, rollout.id, null, cancelled);
  expect(await accountsOf(db, key.customer_id)).toEqual({ balance_mils: 0n, debt_mils: 0n });
  const rows = (await entriesOf(key.customer_id)).filter((row) => row.account === "balance").slice(-2);
  expect(rows).toMatchObject([
    { kind: "refund", amount_mils: CHARGE, reference: rollout.request_id, detail: "refund · pusht-small · 49 frames" },
    { kind: "clawback", amount_mils: -245n, reference: rollout.request_id, detail: "debt repaid" },
  ]);
  // One statement, one time: nobody could have spent the refund in between.
  const [times] = await db.query<{ times: bigint }>(
    "SELECT count(DISTINCT created_at) AS times FROM ledger_entries WHERE customer_id = $1 AND reference = $2 AND kind <> 'debit'",
    [key.customer_id, rollout.request_id],
  );
  expect(times?.times).toBe(1n);
});

test("a customer never has both balance and debt, whatever comes at once", async () => {
  const key = await newCustomer(db, mils(20_000));
  const { customer_id } = key;
  const stop = new AbortController();
  const both: string[] = [];
  const watch = (async () => {
    while (!stop.signal.aborted) {
      const { balance_mils, debt_mils } = await accountsOf(db, customer_id);
      if (balance_mils > 0n && debt_mils > 0n) both.push(`${balance_mils} and ${debt_mils}`);
    }
  })();

  let debits = 0;
  const spend = async (): Promise<void> => {
    for (let n = 0; n < 15; n++) {
      const id = await acceptRollout(db, newRollout(key)).then(
        ({ rollout }) => rollout.id,
        (error: unknown) => {
          expect(error).toMatchObject({ code: "insufficient_credits" });
          return null;
        },
      );
      if (id === null) continue;
      debits += 1;
      if (n % 2 === 0) await settle(db, id, null, cancelled);
    }
  };
  const takeBack = async (name: string): Promise<void> => {
    for (let n = 0; n < 10; n++) {
      const dispute = { customer_id, amount: mils(1_500), reference: `paid_${name}_${n}`, detail: "dispute" };
      await clawBack(db, dispute);
      if (n % 3 === 0) await reinstate(db, { ...dispute, amount: mils(1_000) });
    }
  };
  const topUp = async (): Promise<void> => {
    for (let n = 0; n < 10; n++) {
      await credit(db, { customer_id, amount: mils(700), reference: `paid_up_${n}`, detail: "top-up" });
    }
  };
  await Promise.all([spend(), spend(), spend(), takeBack("x"), takeBack("y"), topUp()]).finally(() => stop.abort());
  await watch;

  expect(both).toEqual([]);
  expect(debits).toBeGreaterThan(0);
  const [sum] = await db.query<{ net: string }>(
    `SELECT sum(CASE account WHEN 'balance' THEN amount_mils ELSE -amount_mils END) AS net
       FROM ledger_entries WHERE customer_id = $1`,
    [customer_id],
  );
  const { balance_mils, debt_mils } = await accountsOf(db, customer_id);
  expect(BigInt(sum?.net ?? 0)).toBe(balance_mils - debt_mils);
});

test("a clawback that waited for a debit takes what the debit left", async () => {
  const key = await newCustomer(db, mils(1_000));
  let waiting: Promise<{ from_balance: bigint; to_debt: bigint }> | undefined;
  await db.transaction(async (tx) => {
    await accept(tx, key);
    waiting = clawBack(db, {
      customer_id: key.customer_id,
      amount: mils(1_000),
      reference: "paid_w",
      detail: "dispute",
    });
    await untilWaitingForLocks(db, 1);
  });
  expect(await waiting).toEqual({ from_balance: 755n, to_debt: 245n });
});

test("a credit that waited for a clawback pays the debt that it made", async () => {
  const { customer_id } = await newCustomer(db, mils(10));
  let waiting: Promise<{ balance_mils: bigint }> | undefined;
  await db.transaction(async (tx) => {
    await clawBack(tx, { customer_id, amount: mils(110), reference: "paid_late", detail: "dispute" });
    waiting = credit(db, { customer_id, amount: mils(150), reference: "paid_next", detail: "top-up" });
    await untilWaitingForLocks(db, 1);
  });
  expect(await waiting).toEqual({ credited: true, balance_mils: 50n });
  expect(await accountsOf(db, customer_id)).toEqual({ balance_mils: 50n, debt_mils: 0n });
});

test("a clawback that is rolled back leaves neither entry nor debt", async () => {
  const { customer_id } = await newCustomer(db, mils(10));
  await expect(
    db.transaction(async (tx) => {
      await clawBack(tx, { customer_id, amount: mils(110), reference: "paid_undone", detail: "dispute" });
      throw new Error("cut");
    }),
  ).rejects.toThrow("cut");
  expect(await accountsOf(db, customer_id)).toEqual({ balance_mils: 10n, debt_mils: 0n });
});

test("refuses clawbacks of nothing or less, and unknown customers", async () => {
  const { customer_id } = await newCustomer(db, mils(10));
  for (const amount of [0n, -1n]) {
    const wrong = { customer_id, amount: mils(amount), reference: "paid_0", detail: "x" };
    await expect(clawBack(db, wrong)).rejects.toThrow(RangeError);
    await expect(reinstate(db, wrong)).rejects.toThrow(RangeError);
  }
  const nobody = { customer_id: "cus_nobody", amount: mils(1), reference: "paid_0", detail: "x" };
  await expect(clawBack(db, nobody)).rejects.toMatchObject({ code: "not_found" });
  await expect(reinstate(db, nobody)).rejects.toMatchObject({ code: "not_found" });
  await expect(accountsOf(db, "cus_nobody")).rejects.toMatchObject({ code: "not_found" });
});

test("an adjustment moves the balance either way, and not below zero", async () => {
  const { customer_id } = await newCustomer(db, mils(100));
  const of = (amount: number, reference: string) => ({
    customer_id,
    amount: mils(amount),
    reference,
    detail: "correction",
  });
  await recordAction(customer_id, "adjust_1", 50);
  await recordAction(customer_id, "adjust_2", -150);
  expect(await adjust(db, of(50, "adjust_1"))).toEqual({ balance_mils: 150n });
  expect(await adjust(db, of(-150, "adjust_2"))).toEqual({ balance_mils: 0n });
  await expect(adjust(db, of(-1, "adjust_3"))).rejects.toMatchObject({ code: "insufficient_credits" });
  await expect(adjust(db, of(0, "adjust_4"))).rejects.toThrow(RangeError);
  await expect(adjust(db, { ...of(1, "adjust_5"), customer_id: "cus_nobody" })).rejects.toMatchObject({
    code: "not_found",
  });
  expect(await accountsOf(db, customer_id)).toEqual({ balance_mils: 0n, debt_mils: 0n });
});

test("an adjustment upwards pays debt first", async () => {
  const { customer_id } = await newCustomer(db, mils(0));
  await clawBack(db, { customer_id, amount: mils(80), reference: "paid_owed", detail: "dispute" });
  await recordAction(customer_id, "adjust_up", 100);
  expect(await adjust(db, { customer_id, amount: mils(100), reference: "adjust_up", detail: "goodwill" })).toEqual({
    balance_mils: 20n,
  });
  expect(await accountsOf(db, customer_id)).toEqual({ balance_mils: 20n, debt_mils: 0n });
});
