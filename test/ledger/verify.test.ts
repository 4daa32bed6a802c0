import { afterAll, beforeAll, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import { credit } from "#ledger/ledger.ts";
import { verifyLedger } from "#ledger/verify.ts";
import type { Database } from "#platform/database.ts";
import { settle } from "#rollouts/settle.ts";
import { accept, cancelled, copyRollouts, dispatch, failed, newCustomer, succeeded } from "#test/support/ledger.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

import { auditAfter, tamperWith } from "./tampering.ts";

let database: TestDatabase;
let db: Database;
/** A customer with entries 1 credit, 2–5 debits, 6 a refund in full, 7 a refund in part. */
let customer: string;

beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
  const key = await newCustomer(db, mils(10_000));
  customer = key.customer_id;
  const [failing, streaming, done] = [await accept(db, key), await accept(db, key), await accept(db, key)];
  await accept(db, key);
  for (const { id } of [failing, streaming, done]) await dispatch(db, id);
  await settle(db, failing.id, 1, failed());
  await settle(db, streaming.id, 1, failed(20));
  await settle(db, done.id, 1, succeeded());
  await newCustomer(db, mils(5));
});
afterAll(() => database.drop());

test("the auditor's hash and the database's agree on every kind of entry", async () => {
  const { customer_id } = await newCustomer(db, mils(5));
  await credit(db, {
    customer_id,
    amount: mils(2n ** 60n),
    reference: "evt_é·🎥",
    detail: "ünïcode · \u0000".slice(0, -1),
  });
  await db.query(
    `INSERT INTO operator_actions (operator, action, customer_id, reason, reference, details)
     VALUES ('a test', 'credits grant', $1, 'a test', 'evt_é·🎥', '{"amount_mils": 1152921504606846976}')`,
    [customer_id],
  );
  expect(await verifyLedger(db)).toEqual([]);
});

const TAMPERINGS: readonly [string, string, RegExp][] = [
  [
    "an amount",
    "UPDATE ledger_entries SET amount_mils = amount_mils + 1 WHERE customer_id = $1 AND seq = 3",
    /not what was hashed/,
  ],
  [
    "a balance after",
    "UPDATE ledger_entries SET balance_after_mils = 1 WHERE customer_id = $1 AND seq = 3",
    /entries add up to/,
  ],
  ["a kind", "UPDATE ledger_entries SET kind = 'adjustment' WHERE customer_id = $1 AND seq = 1", /not what was hashed/],
  ["a detail", "UPDATE ledger_entries SET detail = 'x' WHERE customer_id = $1 AND seq = 2", /not what was hashed/],
  [
    "a reference",
    "UPDATE ledger_entries SET reference = 'x' WHERE customer_id = $1 AND seq = 2",
    /not what was hashed/,
  ],
  [
    "a microsecond",
    "UPDATE ledger_entries SET created_at = created_at + interval '1 us' WHERE customer_id = $1 AND seq = 4",
    /not what was hashed/,
  ],
  [
    "the rollout that was paid for",
    "UPDATE ledger_entries e SET rollout_id = o.rollout_id FROM ledger_entries o WHERE e.customer_id = $1 AND e.seq = 6 AND o.customer_id = $1 AND o.seq = 5",
    /not what was hashed/,
  ],
  [
    "a previous hash",
    "UPDATE ledger_entries SET prev_hash = decode(repeat('00', 32), 'hex') WHERE customer_id = $1 AND seq = 2",
    /does not continue the chain/,
  ],
  [
    "an amount and its hash, computed anew",
    `UPDATE ledger_entries SET amount_mils = amount_mils + 1, balance_after_mils = balance_after_mils + 1,
      hash = ledger_hash(prev_hash, customer_id, account, seq, kind, amount_mils + 1, balance_after_mils + 1, rollout_id, reference, detail, created_at)
      WHERE customer_id = $1 AND seq = 2`,
    /entry 3: does not continue the chain/,
  ],
  [
    "an entry's time, moved before the entry before it and hashed anew",
    `UPDATE ledger_entries SET created_at = '2000-01-01',
      hash = ledger_hash(prev_hash, customer_id, account, seq, kind, amount_mils, balance_after_mils, rollout_id, reference, detail, '2000-01-01')
      WHERE customer_id = $1 AND seq = 7`,
    /entry 7: is older than the entry before it/,
  ],
  [
    "an entry in the middle, removed",
    "DELETE FROM ledger_entries WHERE customer_id = $1 AND seq = 4",
    /entry 5: follows entry 3/,
  ],
  [
    "the last entry, removed",
    "DELETE FROM ledger_entries WHERE customer_id = $1 AND seq = 7",
    /counts 7 entries, the last one is 6/,
  ],
  ["all entries, removed", "DELETE FROM ledger_entries WHERE customer_id = $1", /counts 7 entries, the last one is 0/],
  [
    "two entries, exchanged",
    "UPDATE ledger_entries SET seq = CASE seq WHEN 3 THEN 40 ELSE seq END WHERE customer_id = $1",
    /follows entry/,
  ],
  [
    "the balance of the account",
    "UPDATE accounts SET balance_mils = balance_mils + 1 WHERE customer_id = $1 AND account = 'balance'",
    /holds 9\d\d\d mils, its entries add up to/,
  ],
  [
    "a debt out of nowhere",
    "UPDATE accounts SET balance_mils = 1 WHERE customer_id = $1 AND account = 'debt'",
    /debt: holds 1 mils/,
  ],
  [
    "the head of the chain",
    "UPDATE accounts SET head_hash = prev_hash WHERE customer_id = $1 AND account = 'balance'",
    /its head is not the hash/,
  ],
  [
    "a refund that was made but not noted on the rollout",
    `ALTER TABLE rollouts DROP CONSTRAINT rollouts_refund_is_exact; UPDATE rollouts SET refunded_mils = 0 WHERE status = 'failed'`,
    /says 0 mils refunded, due are/,
  ],
  [
    "a success after the refund",
    `UPDATE rollouts SET status = 'succeeded', result = '{}', error_code = NULL, frames_delivered = frames, refunded_mils = 0 WHERE id = (SELECT rollout_id FROM ledger_entries WHERE customer_id = $1 AND seq = 6)`,
    /1 refunds of 245 mils in the ledger, due are 0/,
  ],
  [
    "an end without a refund",
    `UPDATE rollouts SET status = 'cancelled', frames_delivered = 0, refunded_mils = charge_mils, finished_at = now() WHERE status = 'queued'`,
    /0 refunds of 0 mils in the ledger, due are 245/,
  ],
  [
    "the reference by which a customer joins debit and refund",
    "UPDATE rollouts SET request_id = 'req_other' WHERE id = (SELECT rollout_id FROM ledger_entries WHERE customer_id = $1 AND seq = 6)",
    /2 of its ledger entries do not have its reference, req_other/,
  ],
  [
    "a rollout, removed",
    "DELETE FROM rollouts WHERE id = (SELECT rollout_id FROM ledger_entries WHERE customer_id = $1 AND seq = 6)",
    /balance entry 6: names rollout_[0-9a-f]{32}, which does not exist/,
  ],
  [
    "a debit that names another customer's rollout",
    `UPDATE rollouts SET customer_id = (SELECT max(id) FROM customers WHERE id <> $1) WHERE customer_id = $1 AND status = 'succeeded'`,
    /0 debits of 0 mils in the ledger, expected one of -245[^]*1 ledger entries of another customer or kind name it/,
  ],
  [
    "a rollout's price, with everything that follows from it",
    `UPDATE rollouts SET price_mils_per_frame = 0, charge_mils = 0 WHERE customer_id = $1 AND status = 'queued'`,
    /rollout_\w+: charged 0 mils a frame, the price was 5/,
  ],
  [
    "an account, removed",
    "DELETE FROM accounts WHERE customer_id = $1 AND account = 'debt'",
    /cus_[0-9a-f]+: has no debt account/,
  ],
  [
    "the balance account, removed with all it says",
    "DELETE FROM accounts WHERE customer_id = $1 AND account = 'balance'",
    /cus_[0-9a-f]+: has no balance account/,
  ],
  [
    "a rollout that nobody paid",
    copyRollouts(`'{"id": "rollout_free"}'`, "WHERE status = 'queued'"),
    /rollout_free: 0 debits of 0 mils/,
  ],
];

test.each(TAMPERINGS)("notices %s that was tampered with", async (_, tampering, problem) => {
  expect((await auditAfter(db, tamperWith(tampering, customer))).join("\n")).toMatch(problem);
  expect(await verifyLedger(db)).toEqual([]); // and it was undone
});

test("one entry that was changed is not found again in each that follows", async () => {
  const problems = await auditAfter(db, (tx) =>
    tx.query("UPDATE ledger_entries SET amount_mils = amount_mils + 1 WHERE customer_id = $1 AND seq = 2", [customer]),
  );
  expect(problems.filter((problem) => problem.startsWith(customer))).toEqual([
    `${customer}/balance entry 2: is not what was hashed`,
    `${customer}/balance entry 2: says 9755 mils afterwards, the entries add up to 9756`,
  ]);
});

test("a price counts from its date on for whom it is meant; a minute is left for its way into the database", async () => {
  const key = await newCustomer(db, mils(10_000));
  const { id } = await accept(db, key);
  const verdict = (effective: string, customerId: string): Promise<readonly string[]> =>
    auditAfter(db, (tx) =>
      tx.query(
        `INSERT INTO prices (customer_id, mils_per_frame, effective_from, note)
         SELECT $1, 4, created_at + $2::interval, 'a test' FROM rollouts WHERE id = $3`,
        [customerId, effective, id],
      ),
    );
  expect(await verdict("-61 seconds", key.customer_id)).toEqual([`${id}: charged 5 mils a frame, the price was 4`]);
  expect(await verdict("-59 seconds", key.customer_id)).toEqual([]);
  expect(await verdict("1 microsecond", key.customer_id)).toEqual([]);
  expect(await verdict("-1 day", customer)).not.toContainEqual(expect.stringContaining(id));
});

test("audits a system that is at work without false alarms", async () => {
  const key = await newCustomer(db, mils(100_000));
  const work = async (): Promise<void> => {
    for (let n = 0; n < 40; n++) {
      const { id } = await accept(db, key);
      await settle(db, id, null, cancelled);
    }
  };
  const work3 = Promise.all([work(), work(), work()]);
  for (let audit = 0; audit < 10; audit++) expect(await verifyLedger(db)).toEqual([]);
  await work3;
  expect(await verifyLedger(db)).toEqual([]);
});

test("goes through more entries than one page", async () => {
  const { customer_id } = await newCustomer(db, mils(0));
  await db.query(
    `DO $$ BEGIN FOR i IN 1..2100 LOOP
       WITH moved AS (
         UPDATE accounts a SET balance_mils = balance_mils + 1, seq = seq + 1, prev_hash = head_hash,
                head_hash = ledger_hash(head_hash, customer_id, account, seq + 1, 'credit', 1, balance_mils + 1, NULL, 'page-' || i, 'x', now())
          WHERE customer_id = '${customer_id}' AND account = 'balance' RETURNING *)
       INSERT INTO ledger_entries (customer_id, account, seq, kind, amount_mils, balance_after_mils, reference, detail, created_at, prev_hash, hash)
       SELECT customer_id, account, seq, 'credit', 1, balance_mils, 'page-' || i, 'x', now(), prev_hash, head_hash FROM moved;
     END LOOP; END $$`,
  );
  await db.query(
    `INSERT INTO operator_actions (operator, action, customer_id, reason, reference, details)
     SELECT 'a test', 'credits grant', $1, 'a test', 'page-' || i, '{"amount_mils": 1}' FROM generate_series(1, 2100) i`,
    [customer_id],
  );
  expect(await verifyLedger(db)).toEqual([]);
  const problems = await auditAfter(db, (tx) =>
    tx.query("UPDATE ledger_entries SET detail = 'y' WHERE reference IN ('page-2001', 'page-2100')"),
  );
  expect(problems).toHaveLength(2);
});
