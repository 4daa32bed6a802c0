import { afterAll, beforeAll, expect, test, vi } from "vitest";

import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";

import { accept, newCustomer } from "../support/ledger.ts";
import { createTestDatabase, type TestDatabase } from "../support/postgres.ts";
import { type Ran, run } from "./command.ts";

/** A command is a process, and a busy machine takes seconds to start one. */
vi.setConfig({ testTimeout: 90_000 });

let database: TestDatabase;
let key: CreatedKey;
let other: CreatedKey;
beforeAll(async () => {
  database = await createTestDatabase();
  key = await newCustomer(database.db, mils(1_000));
  other = await newCustomer(database.db, mils(5));
  await accept(database.db, key);
});
afterAll(() => database.drop());

const ledger = (...args: string[]): Promise<Ran> => run(["ledger", ...args], { DATABASE_URL: database.url });
const checks = (): Promise<{ problems: number }[]> =>
  database.db.query("SELECT problems FROM ledger_checks ORDER BY id");

async function tamper(statement: string, params: readonly unknown[]): Promise<void> {
  await database.db.transaction(async (tx) => {
    await tx.query("SET LOCAL session_replication_role = replica");
    await tx.query(statement, params);
  });
}

test("ledger totals shows each day's totals by kind, as a table and as JSON", async () => {
  const today = new Date().toISOString().slice(0, 10);
  const { stdout, code } = await ledger("totals", "--days", "2");
  expect(code).toBe(0);
  expect(stdout).toMatch(/^DAY \(UTC\)\s+ACCOUNT\s+KIND\s+ENTRIES\s+MILS\s+USD$/m);
  expect(stdout).toMatch(new RegExp(`^${today}\\s+balance\\s+debit\\s+1\\s+-245\\s+-0\\.0245$`, "m"));
  expect(JSON.parse((await ledger("totals", "--json")).stdout)).toEqual([
    { day: today, account: "balance", kind: "credit", entries: 2, mils: 1_005, usd: "0.1005" },
    { day: today, account: "balance", kind: "debit", entries: 1, mils: -245, usd: "-0.0245" },
  ]);
  const wrong = await ledger("totals", "--days", "0");
  expect(wrong.code).not.toBe(0);
  expect(wrong.stderr).toContain("expected a whole number from 1 to");
});

test("ledger verify says what it checked, ends with 0 and records the check", async () => {
  const { stdout, stderr, code } = await ledger("verify");
  expect({ code, stdout, stderr }).toEqual({
    code: 0,
    stdout:
      "The books balance: checked accounts 4, entries 3, rollouts 1, dataset rows 0, payments 0, operator actions 2.\n",
    stderr: "",
  });
  expect(await checks()).toEqual([{ problems: 0 }]);
});

test("ledger verify of one customer looks at that one, by id or address, and records nothing", async () => {
  const before = await checks();
  const { stdout, code } = await ledger("verify", "--customer", key.customer_id, "--json");
  expect(code).toBe(0);
  expect(JSON.parse(stdout)).toEqual({
    ok: true,
    checked: { accounts: 2, entries: 2, rollouts: 1, dataset_rows: 0, payments: 0, operator_actions: 1 },
    problems: [],
  });
  expect(await checks()).toEqual(before);
  const unknown = await ledger("verify", "--customer", "nobody@example.com");
  expect(unknown.code).toBe(1);
  expect(unknown.stderr).toContain("There is no customer nobody@example.com");
});

test("ledger verify names every disagreement and ends with 1", async () => {
  await tamper("UPDATE ledger_entries SET detail = 'x' WHERE customer_id = $1 AND seq = 1", [key.customer_id]);
  const { stdout, code } = await ledger("verify");
  expect(code).toBe(1);
  expect(stdout).toContain(`${key.customer_id}/balance entry 1: is not what was hashed\n`);
  expect(stdout).toContain("1 disagreement; keep the database as it is: checked accounts 4");
  expect((await checks()).at(-1)).toEqual({ problems: 1 });

  const json = await ledger("verify", "--json");
  expect(json.code).toBe(1);
  expect(JSON.parse(json.stdout)).toMatchObject({ ok: false, problems: [expect.stringContaining("entry 1")] });
  expect((await ledger("verify", "--customer", other.customer_id)).code).toBe(0);
});
