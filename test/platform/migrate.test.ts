import { readdir } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";

import { runner } from "node-pg-migrate";
import { afterAll, beforeAll, expect, test } from "vitest";

import { migrate } from "#platform/migrate.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";

let database: TestDatabase;
beforeAll(async () => {
  database = await createTestDatabase();
});
afterAll(() => database.drop());

const MIGRATIONS = "src/platform/migrations";

async function emptied(): Promise<void> {
  await database.db.query("DROP SCHEMA public CASCADE");
  await database.db.query("CREATE SCHEMA public");
}

test("migrates an empty database once, also when several processes start together", async () => {
  await emptied();
  await Promise.all(Array.from({ length: 4 }, () => migrate(database.url, silentLog)));
  await migrate(database.url, silentLog);

  const applied = await database.db.query<{ name: string }>("SELECT name FROM schema_migrations ORDER BY id");
  const files = (await readdir(MIGRATIONS)).sort();
  expect(files[0]).toBe("0001_ledger_keys_rollouts.sql");
  expect(applied.map(({ name }) => `${name}.sql`)).toEqual(files);
  expect(await database.db.query("SELECT mils_per_frame FROM prices")).toEqual([{ mils_per_frame: 5 }]);
});

test("brings a database with rollouts to a line for each, in longer than a statement may take otherwise", async () => {
  await emptied();
  const { db, url } = database;
  const until = (count: number, timeoutMs: number): Promise<unknown> =>
    runner({
      databaseUrl: { connectionString: url, statement_timeout: timeoutMs },
      dir: MIGRATIONS,
      direction: "up",
      count,
      migrationsTable: "schema_migrations",
      singleTransaction: true,
      log: () => undefined,
    });
  await until(4, 60_000);
  await db.query("INSERT INTO customers (id) VALUES ('cus_a')");
  await db.query("INSERT INTO api_keys (id, customer_id, key_hash, prefix) VALUES ('key', 'cus_a', sha256('a'), 'a')");
  await db.query(
    `INSERT INTO rollouts (id, customer_id, key_id, request_id, route, model, lane, scored, k, actions_per_candidate, frames,
                           params, fingerprint, price_mils_per_frame, charge_mils, deadline_at)
     SELECT concat(lane, scored, n), 'cus_a', 'key', 'req', 'rollouts', 'm', lane, scored, 1, 48, 49, '{}', sha256('a'), 5, 245, now()
       FROM (VALUES ('realtime', false), ('bulk', false), ('bulk', true)) AS kinds (lane, scored), generate_series(1, 3) AS n`,
  );
  // As a long one would take: it waits for somebody who reads.
  const [timeoutMs, readsForMs] = [1_000, 2_000];
  const locked = Promise.withResolvers<void>();
  const reading = db.transaction(async (tx) => {
    await tx.query("LOCK TABLE rollouts IN ACCESS SHARE MODE");
    locked.resolve();
    await delay(readsForMs);
  });
  await locked.promise;
  await until(1, timeoutMs);
  await reading;
  expect(await db.query("SELECT line, count(*)::int AS count FROM rollouts GROUP BY line ORDER BY line")).toEqual([
    { line: "bulk", count: 3 },
    { line: "realtime", count: 3 },
    { line: "scored", count: 3 },
  ]);
  await migrate(url, silentLog);
  expect(await db.query("SELECT hour FROM earnings_hours")).toEqual([]);
});
