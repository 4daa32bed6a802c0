import { readdir } from "node:fs/promises";

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
  const files = (await readdir("src/platform/migrations")).sort();
  expect(files[0]).toBe("0001_ledger_keys_rollouts.sql");
  expect(applied.map(({ name }) => `${name}.sql`)).toEqual(files);
  expect(await database.db.query("SELECT mils_per_frame FROM prices")).toEqual([{ mils_per_frame: 5 }]);
});
