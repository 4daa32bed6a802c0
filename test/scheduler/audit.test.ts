/** The leader's daily verification. */
import { pino } from "pino";
import { afterEach, beforeEach, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import type { Database } from "#platform/database.ts";
import { startAudit } from "#scheduler/audit.ts";

import { newCustomer } from "../support/ledger.ts";
import { createTestDatabase, type TestDatabase } from "../support/postgres.ts";

let database: TestDatabase;
let db: Database;
let lines: { level: number; msg: string; problems?: string[] }[];
beforeEach(async () => {
  database = await createTestDatabase();
  ({ db } = database);
  lines = [];
  await newCustomer(db, mils(1_000));
});
afterEach(() => database.drop());

const log = pino({ level: "info" }, { write: (line: string) => void lines.push(JSON.parse(line)) });

const checks = (): Promise<{ problems: number; examples: string[] }[]> =>
  db.query("SELECT problems, examples FROM ledger_checks ORDER BY id");

/** With the scheduler's own rights, until one more check is recorded. */
async function runOnce(): Promise<void> {
  const before = (await checks()).length;
  const audit = startAudit({ db: database.as("scheduler"), log });
  await expect.poll(async () => (await checks()).length, { timeout: 10_000 }).toBeGreaterThan(before);
  await audit.stop();
}

test("verifies at start when it never was, and records that the books balance", async () => {
  await runOnce();
  expect(await checks()).toEqual([{ problems: 0, examples: [] }]);
  expect(lines.map(({ msg }) => msg)).toEqual(["the books balance"]);
});

test("does not verify again within a day, and does after it", async () => {
  await db.query("INSERT INTO ledger_checks (checked_at, problems) VALUES (now() - interval '23 hours', 0)");
  const looked = Promise.withResolvers<void>();
  let audits = 0;
  const watched: Database = {
    ...db,
    query: async <Row>(text: string, params?: readonly unknown[]) => {
      const rows = await db.query<Row>(text, params);
      setImmediate(looked.resolve); // after all that follows from the answer at once, such as the begin of an audit
      return rows;
    },
    transaction: (run) => {
      audits += 1;
      return db.transaction(run);
    },
  };
  const audit = startAudit({ db: watched, log });
  await looked.promise;
  await audit.stop();
  expect(audits).toBe(0);
  expect(await checks()).toHaveLength(1);

  await db.query("UPDATE ledger_checks SET checked_at = now() - interval '25 hours'");
  await runOnce();
  expect(await checks()).toHaveLength(2);
});

test("logs an error and records what disagrees", async () => {
  await db.transaction(async (tx) => {
    await tx.query("SET LOCAL session_replication_role = replica");
    await tx.query("UPDATE accounts SET balance_mils = 7 WHERE account = 'debt'");
  });
  await runOnce();
  const [check] = await checks();
  expect(check?.problems).toBe(2);
  expect(check?.examples).toContainEqual(expect.stringMatching(/debt: holds 7 mils, its entries add up to 0$/));
  expect(lines).toMatchObject([{ level: 50, count: 2, problems: check?.examples }]);
});

test("ends between two pages when it is stopped, and records nothing of a part", async () => {
  await db.query(
    `DO $$ DECLARE c text := (SELECT id FROM customers LIMIT 1); BEGIN FOR i IN 1..600 LOOP
       PERFORM post_ledger_entry(c, 'balance', 'clawback', 1, 'x', 'x');
     END LOOP; END $$`,
  );
  const begun = Promise.withResolvers<void>();
  const slow: Database = {
    ...db,
    transaction: (run) =>
      db.transaction((tx) =>
        run({
          query: async (text, params) => {
            if (text.includes("FROM ledger_entries")) begun.resolve();
            return tx.query(text, params);
          },
        }),
      ),
  };
  const audit = startAudit({ db: slow, log });
  await begun.promise;
  await audit.stop();
  expect(await checks()).toEqual([]);
});
