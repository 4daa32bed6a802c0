import { afterAll, beforeAll, expect, test } from "vitest";

import { migrate } from "#platform/migrate.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";

let database: TestDatabase;
beforeAll(async () => {
  database = await createTestDatabase();
});
afterAll(() => database.drop());

test("migrates an empty database once, also when several processes start together", async () => {
  await database.db.query("DROP SCHEMA public CASCADE");
  await database.db.query("CREATE SCHEMA public");

  await Promise.all(Array.from({ length: 4 }, () => migrate(database.url, silentLog)));
  await migrate(database.url, silentLog);

  const applied = await database.db.query<{ name: string }>("SELECT name FROM schema_migrations ORDER BY id");
  expect(applied.map(({ name }) => name)).toEqual([
    "0001_ledger_keys_rollouts",
    "0002_money_and_keys",
    "0003_jobs_and_datasets",
  ]);
  expect(await database.db.query("SELECT mils_per_frame FROM prices")).toEqual([{ mils_per_frame: 5 }]);
});
