import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, expect, test } from "vitest";

import { connectAlone, createDatabase, type Database } from "#platform/database.ts";
import { sharedSecret } from "#platform/shared-secret.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
  await db.query("CREATE TABLE notes (text text PRIMARY KEY)");
});
afterAll(() => database.drop());

test("64-bit integers come back exact, as bigint", async () => {
  const [row] = await db.query(
    "SELECT 9223372036854775807::bigint AS big, 7::int AS small, count(*) AS counted FROM notes",
  );
  expect(row).toEqual({ big: 9223372036854775807n, small: 7, counted: 0n });
});

test("a transaction that throws leaves nothing, one that resolves everything", async () => {
  await expect(
    db.transaction(async (tx) => {
      await tx.query("INSERT INTO notes VALUES ('half')");
      throw new Error("half-way");
    }),
  ).rejects.toThrow("half-way");
  await db.transaction((tx) => tx.query("INSERT INTO notes VALUES ($1)", ["whole"]));
  expect(await db.query("SELECT text FROM notes")).toEqual([{ text: "whole" }]);
});

test("outlives its connections being cut, in the middle of a transaction too", async () => {
  const cut =
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
  const other = createDatabase({ url: database.url, log: silentLog, poolMax: 1 });
  await expect(
    db.transaction(async (tx) => {
      await tx.query("INSERT INTO notes VALUES ('cut')");
      await other.query(cut);
      await tx.query("SELECT 1");
    }),
  ).rejects.toThrow(/terminating connection|Connection terminated|not queryable/);
  await expect
    .poll(() => db.query("SELECT text FROM notes WHERE text = 'cut'").catch(() => "reconnecting"))
    .toEqual([]);
  await other.stop();
});

test("a connection of one's own waits neither for the pool nor for a statement that hangs", async () => {
  const busy = createDatabase({ url: database.url, log: silentLog, poolMax: 1 });
  const only = await busy.pool.connect();
  const own = await connectAlone(busy, 500);
  expect(await own.query("SELECT 7::bigint AS seven")).toEqual([{ seven: 7n }]);
  await expect(own.query("SELECT pg_sleep(10)")).rejects.toThrow(/timeout/);
  own.close();
  await expect(own.query("SELECT 1")).rejects.toThrow(/closed|not queryable/);
  only.release();
  await busy.stop();
});

test("stopping twice is the same as once", async () => {
  const other = createDatabase({ url: database.url, log: silentLog });
  await other.query("SELECT 1");
  await Promise.all([other.stop(), other.stop()]);
  await other.stop();
  await expect(other.query("SELECT 1")).rejects.toThrow(/pool/);
});

test("a role that was granted nothing sees nothing of the ledger", async () => {
  const role = `outsider_${randomBytes(4).toString("hex")}`;
  await db.query(`CREATE ROLE ${role}`);
  try {
    for (const statement of [
      "SELECT * FROM public.accounts",
      "SELECT * FROM public.api_keys",
      "INSERT INTO public.notes VALUES ('x')",
      "SELECT public.price_in_force('x', now())",
      "CREATE TABLE public.mine (x int)",
    ]) {
      await expect(
        db.transaction(async (tx) => {
          await tx.query(`SET LOCAL ROLE ${role}`);
          await tx.query(statement);
        }),
      ).rejects.toThrow(/permission denied for schema public/);
    }
  } finally {
    await db.query(`DROP ROLE ${role}`);
  }
});

test("a shared secret is made once, whoever asks first", async () => {
  const secrets = await Promise.all(Array.from({ length: 8 }, () => sharedSecret(db, "video-urls", randomBytes)));
  expect(new Set(secrets.map((secret) => secret.toString("hex"))).size).toBe(1);
  expect(secrets[0]).toHaveLength(32);
  expect(await sharedSecret(db, "another", randomBytes)).not.toEqual(secrets[0]);
});
