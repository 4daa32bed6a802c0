/** The auditor on money from and to the outside: payments, disputes, debt, operators' adjustments. */
import { afterAll, beforeAll, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import { adjust } from "#ledger/adjust.ts";
import { clawBack } from "#ledger/clawback.ts";
import { credit } from "#ledger/ledger.ts";
import { auditLedger, verifyLedger } from "#ledger/verify.ts";
import type { Database } from "#platform/database.ts";
import { accept, grant, newCustomer } from "#test/support/ledger.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

import { auditAfter, tamperWith } from "./tampering.ts";

const TOPUP = `topup_${"0".repeat(32)}`;

let database: TestDatabase;
let db: Database;
/** Topped up by $5, adjusted by 45 mils, 245 spent; then $1 was refunded and $4.50 disputed: 4,700 mils of debt. */
let customer: string;
/** Owes nothing, owns 1,000 mils. */
let other: string;

beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
  const key = await newCustomer(db, mils(0));
  customer = key.customer_id;
  other = (await newCustomer(db, mils(1_000))).customer_id;
  await db.query("INSERT INTO topups (id, customer_id, request_id, amount_cents) VALUES ($1, $2, 'req_topup', 500)", [
    TOPUP,
    customer,
  ]);
  await db.query(
    `INSERT INTO payments (id, topup_id, paid_cents, refunded_cents, credited_mils, clawed_back_mils)
     VALUES ('pi_1', $1, 500, 100, 50000, 50000)`,
    [TOPUP],
  );
  await db.query(
    "INSERT INTO payment_disputes (id, payment_id, amount_cents, state) VALUES ('dp_1', 'pi_1', 450, 'open')",
  );
  await db.query(
    `INSERT INTO operator_actions (operator, action, customer_id, reason, reference, details)
     VALUES ('ops', 'adjust', $1, 'too little', 'adjust_1', '{"amount_mils": 45}'),
            ('ops', 'close', $1, 'asked for it', NULL, '{}')`,
    [customer],
  );
  await credit(db, { customer_id: customer, amount: mils(50_000), reference: "pi_1", detail: "top-up" });
  await adjust(db, { customer_id: customer, amount: mils(45), reference: "adjust_1", detail: "too little" });
  await accept(db, key);
  await clawBack(db, { customer_id: customer, amount: mils(10_000), reference: "pi_1", detail: "refund" });
  await clawBack(db, { customer_id: customer, amount: mils(40_000), reference: "pi_1", detail: "dispute" });
  // Debt 200 mils, of which the next credit pays a part.
  await grant(db, { customer_id: customer, amount: mils(50), reference: "grant_1" });
});
afterAll(() => database.drop());

test("finds nothing where payments, disputes and debt agree with the ledger", async () => {
  const { checked, problems } = await auditLedger(db);
  expect(problems).toEqual([]);
  expect(checked).toEqual({ accounts: 4, entries: 10, rollouts: 1, dataset_rows: 0, payments: 1, operator_actions: 3 });
});

test("one customer alone can be audited", async () => {
  const { checked, problems } = await auditLedger(db, { customer: other });
  expect(problems).toEqual([]);
  expect(checked).toEqual({ accounts: 2, entries: 1, rollouts: 0, dataset_rows: 0, payments: 0, operator_actions: 1 });
  const whole = await auditLedger(db, { customer });
  expect(whole.checked).toEqual({
    accounts: 2,
    entries: 9,
    rollouts: 1,
    dataset_rows: 0,
    payments: 1,
    operator_actions: 2,
  });
});

test("says how far it is, and stops when told to", async () => {
  const reports: (readonly [number, number])[] = [];
  await auditLedger(db, { onProgress: (done, total) => reports.push([done, total]) });
  expect(reports.at(-1)).toEqual([16, 16]);
  for (const [done, total] of reports) expect(done).toBeLessThanOrEqual(total);
});

const TAMPERINGS: readonly (readonly [what: string, statements: string, problem: RegExp])[] = [
  [
    "a balance beside a debt",
    `ALTER TABLE accounts DISABLE TRIGGER ALL; UPDATE accounts SET balance_mils = 7 WHERE customer_id = $1 AND account = 'balance'`,
    /cus_\w+: has a balance of 7 mils and owes 150/,
  ],
  [
    "a debt that was written off by hand",
    "UPDATE accounts SET balance_mils = 0 WHERE customer_id = $1 AND account = 'debt'",
    /debt: holds 0 mils, its entries add up to 150/,
  ],
  [
    "a debt entry, removed",
    "DELETE FROM ledger_entries WHERE customer_id = $1 AND account = 'debt' AND seq = 1",
    /debt entry 2: follows entry 0/,
  ],
  [
    "a payment that says more was credited",
    "UPDATE payments SET credited_mils = 60000",
    /payment pi_1: says 60000 mils credited, the ledger 50000[^]*payment pi_1: credited 60000 mils, paid were 50000/,
  ],
  [
    "a payment of another amount",
    "UPDATE payments SET paid_cents = 600",
    /payment pi_1: credited 50000 mils, paid were 60000/,
  ],
  [
    "a payment that was made and not credited",
    "INSERT INTO topups (id, customer_id, request_id, amount_cents) VALUES ('topup_' || repeat('1', 32), $1, 'req_x', 700); INSERT INTO payments (id, topup_id, paid_cents) VALUES ('pi_2', 'topup_' || repeat('1', 32), 700)",
    /payment pi_2: credited 0 mils, paid were 70000/,
  ],
  [
    "a payment that says less was clawed back",
    "UPDATE payments SET clawed_back_mils = 10000",
    /payment pi_1: says 10000 mils clawed back, the ledger 50000[^]*10000 mils clawed back, refunds and disputes make it 50000/,
  ],
  [
    "a dispute that was won without anything given back",
    "UPDATE payment_disputes SET state = 'won'",
    /payment pi_1: 50000 mils clawed back, refunds and disputes make it 10000/,
  ],
  [
    "a refund that failed without anything given back",
    "INSERT INTO payment_refunds (id, payment_id, amount_cents, state) VALUES ('re_1', 'pi_1', 100, 'failed')",
    /payment pi_1: 50000 mils clawed back, refunds and disputes make it 45000/,
  ],
  [
    "a refund that was not taken back",
    "UPDATE payment_disputes SET state = 'won'; INSERT INTO payment_refunds (id, payment_id, amount_cents, state) VALUES ('re_1', 'pi_1', 100, 'succeeded'), ('re_2', 'pi_1', 90, 'pending')",
    /payment pi_1: 50000 mils clawed back, refunds and disputes make it 19000/,
  ],
  ["a payment, removed", "DELETE FROM payments", /balance entry 1: credit of pi_1, an unknown payment/],
  [
    "a payment of another customer's top-up",
    "UPDATE topups SET customer_id = (SELECT max(id) FROM customers WHERE id <> $1)",
    /payment pi_1: 4 ledger entries of others than cus_\w+ name it/,
  ],
  [
    "a second credit of one payment",
    "DROP INDEX ledger_once_per_payment; UPDATE ledger_entries SET reference = 'pi_1' WHERE reference = 'grant_1' AND kind = 'credit'",
    /payment pi_1: was credited 2 times[^]*payment pi_1: says 50000 mils credited, the ledger 50050/,
  ],
  [
    "an adjustment without an operator",
    "DELETE FROM operator_actions WHERE reference = 'adjust_1'",
    /balance entry 2: adjustment adjust_1 without a recorded action of an operator/,
  ],
  [
    "an operator's action about somebody else",
    "UPDATE operator_actions SET customer_id = (SELECT max(id) FROM customers WHERE id <> $1) WHERE reference = 'adjust_1'",
    /balance entry 2: the operator's action adjust_1 is about cus_\w+/,
  ],
  [
    "an operator's action about another amount",
    `UPDATE operator_actions SET details = '{"amount_mils": 4500}' WHERE reference = 'adjust_1'`,
    /balance entry 2: moved 45 mils, the operator's action adjust_1 says 4500/,
  ],
  [
    "an operator's action that moved nothing",
    "INSERT INTO operator_actions (operator, action, customer_id, reason, reference) VALUES ('x', 'grant', $1, 'x', 'grant_nothing')",
    /operator's grant grant_nothing of cus_\w+: no ledger entry has its reference/,
  ],
];

test("payments that wait for an operator, or that he decided not to credit, are no disagreement", async () => {
  const problems = await auditAfter(db, async (tx) => {
    await tx.query(
      `INSERT INTO payments (id, paid_cents, problem, resolution)
       VALUES ('pi_3', 700, 'paid 700 cents for an unknown top-up', NULL), ('pi_4', 700, NULL, 'refunded at Stripe'),
              ('pi_5', NULL, NULL, NULL)`,
    );
  });
  expect(problems).toEqual([]);
});

test.each(TAMPERINGS)("notices %s", async (_, statements, problem) => {
  expect((await auditAfter(db, tamperWith(statements, customer))).join("\n")).toMatch(problem);
  expect(await verifyLedger(db)).toEqual([]); // and it was undone
});
