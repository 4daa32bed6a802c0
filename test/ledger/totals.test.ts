import { afterAll, beforeAll, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import { lastCheckAgeMs, recordCheck } from "#ledger/checks.ts";
import { clawBack } from "#ledger/clawback.ts";
import { dailyTotals } from "#ledger/totals.ts";
import type { Database } from "#platform/database.ts";
import { settle } from "#rollouts/settle.ts";
import { accept, cancelled, newCustomer } from "#test/support/ledger.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

const DAY_MS = 86_400_000;

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
});
afterAll(() => database.drop());

test("daily totals add up each kind of entry on its UTC day, debt apart from balance", async () => {
  const [one, two] = [await newCustomer(db, mils(1_000)), await newCustomer(db, mils(500))];
  await accept(db, one);
  const { id } = await accept(db, two);
  await settle(db, id, null, cancelled);
  await clawBack(db, { customer_id: two.customer_id, amount: mils(700), reference: "paid_a", detail: "dispute" });
  // The first customer's credit is moved to the day before, at its last microsecond.
  await db.transaction(async (tx) => {
    await tx.query("SET LOCAL session_replication_role = replica");
    await tx.query(
      `UPDATE ledger_entries SET created_at = (date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC') - interval '1 us'
        WHERE customer_id = $1 AND kind = 'credit'`,
      [one.customer_id],
    );
  });

  const now = Date.now();
  const today = new Date(now).toISOString().slice(0, 10);
  const yesterday = new Date(now - DAY_MS).toISOString().slice(0, 10);
  const ofToday = [
    { day: today, account: "balance", kind: "clawback", entries: 1n, mils: -500n },
    { day: today, account: "balance", kind: "credit", entries: 1n, mils: 500n },
    { day: today, account: "balance", kind: "debit", entries: 2n, mils: -490n },
    { day: today, account: "balance", kind: "refund", entries: 1n, mils: 245n },
    { day: today, account: "debt", kind: "clawback", entries: 1n, mils: 200n },
  ];
  expect(await dailyTotals(db, 30, now)).toEqual([
    { day: yesterday, account: "balance", kind: "credit", entries: 1n, mils: 1_000n },
    ...ofToday,
  ]);
  expect(await dailyTotals(db, 1, now)).toEqual(ofToday);
  expect(await dailyTotals(db, 1, now - 5 * DAY_MS)).toEqual([]);
});

test("a check is recorded with its first problems, and its age is known", async () => {
  expect(await lastCheckAgeMs(db)).toBeNull();
  await recordCheck(
    db,
    Array.from({ length: 40 }, (_, index) => `problem ${index}`),
  );
  const [row] = await db.query<{ problems: number; examples: string[] }>(
    "SELECT problems, examples FROM ledger_checks",
  );
  expect(row).toMatchObject({ problems: 40, examples: expect.arrayContaining(["problem 0", "problem 9"]) });
  expect(row?.examples).toHaveLength(10);
  expect(await lastCheckAgeMs(db)).toBeLessThan(60_000);
});
