import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, expect, test } from "vitest";

import { connectAlone, createDatabase, type Database, isAway, isUndone } from "#platform/database.ts";
import { sharedSecret } from "#platform/shared-secret.ts";
import { createTestDatabase, silentLog, type TestDatabase, untilWaitingForLocks } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
  await db.query("CREATE TABLE notes (text text PRIMARY KEY)");
  await db.query("CREATE TABLE pairs (id text PRIMARY KEY, n int NOT NULL)");
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

test("a transaction that goes on after a failed statement is not said to be committed", async () => {
  await expect(
    db.transaction(async (tx) => {
      await tx.query("INSERT INTO notes VALUES ('lost')");
      await tx.query("SELECT 1 / 0").catch(() => undefined);
    }),
  ).rejects.toThrow("rolled back");
  expect(await db.query("SELECT text FROM notes WHERE text = 'lost'")).toEqual([]);
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

/** Somebody else, who keeps `first` locked until `meanwhile` waits for it, then asks for `second`, and commits. */
async function meet(first: string, second: string, meanwhile: () => Promise<unknown>): Promise<unknown> {
  const other = await db.pool.connect();
  try {
    await other.query("BEGIN");
    await other.query("SET LOCAL deadlock_timeout = '60s'"); // the other side is the one that notices, and is rolled back
    await other.query("UPDATE pairs SET n = n + 10 WHERE id = $1", [first]);
    const result = meanwhile();
    await untilWaitingForLocks(db, 1);
    await other.query("UPDATE pairs SET n = n + 10 WHERE id = $1", [second]);
    await other.query("COMMIT");
    return await result;
  } finally {
    other.release();
  }
}

test("a statement that PostgreSQL ended because of a deadlock is run again", async () => {
  await db.query("INSERT INTO pairs VALUES ('a', 0), ('b', 0)");
  const both = `WITH first AS (UPDATE pairs SET n = n + 1 WHERE id = 'a' RETURNING n)
                UPDATE pairs SET n = pairs.n + 1 FROM first WHERE id = 'b' RETURNING pairs.n`;
  expect(await meet("b", "a", () => db.query(both))).toEqual([{ n: 11 }]);
  expect(await db.query("SELECT * FROM pairs ORDER BY id")).toEqual([
    { id: "a", n: 11 },
    { id: "b", n: 11 },
  ]);
});

test("a transaction that PostgreSQL ended because of a deadlock is run again from its start", async () => {
  await db.query("INSERT INTO pairs VALUES ('c', 0), ('d', 0)");
  let runs = 0;
  const run = (): Promise<unknown> =>
    db.transaction(async (tx) => {
      runs += 1;
      await tx.query("UPDATE pairs SET n = n + 1 WHERE id = 'c'");
      return tx.query("UPDATE pairs SET n = n + 1 WHERE id = 'd' RETURNING n");
    });
  expect(await meet("d", "c", run)).toEqual([{ n: 11 }]);
  expect(runs).toBeGreaterThan(1); // a run that is back before the other side has woken up meets it once more
  expect(await db.query("SELECT n FROM pairs WHERE id = 'c'")).toEqual([{ n: 11 }]);
});

test("a transaction that cannot be serialized is run again, also when that shows at its commit", async () => {
  await db.query("INSERT INTO pairs VALUES ('e', 0), ('f', 0)");
  let runs = 0;
  const read = Promise.withResolvers<void>();
  let readers = 0;
  /** Each writes what the other has read: at most one of two at once may commit. */
  const cross = (from: string, to: string): Promise<void> =>
    db.transaction(async (tx) => {
      runs += 1;
      await tx.query("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE");
      const [row] = await tx.query<{ n: number }>("SELECT n FROM pairs WHERE id = $1", [from]);
      readers += 1;
      if (readers === 2) read.resolve();
      await read.promise;
      await tx.query("UPDATE pairs SET n = $2 WHERE id = $1", [to, (row?.n ?? 0) + 1]);
    });
  await Promise.all([cross("e", "f"), cross("f", "e")]);
  expect(runs).toBe(3);
  // As one after the other: 1 from 0, then 2 from 1.
  const rows = await db.query<{ n: number }>("SELECT n FROM pairs WHERE id IN ('e', 'f')");
  expect(rows.map(({ n }) => n).toSorted((x, y) => x - y)).toEqual([1, 2]);
});

test("what is rolled back each time is tried five times; any other failure once", async () => {
  await db.query("CREATE SEQUENCE tries");
  await db.query(`CREATE FUNCTION fail(code text) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN PERFORM nextval('tries'); RAISE EXCEPTION 'no' USING ERRCODE = code; END $$`);
  const triesOf = async (run: () => Promise<unknown>, code: string): Promise<number> => {
    await db.query("ALTER SEQUENCE tries RESTART");
    await expect(run()).rejects.toMatchObject({ code });
    const [row] = await db.query<{ tries: bigint }>("SELECT last_value AS tries FROM tries WHERE is_called");
    return Number(row?.tries);
  };
  for (const [code, tries] of [
    ["40001", 5],
    ["40P01", 5],
    ["40003", 1],
    ["57014", 1],
    ["23505", 1],
  ] as const) {
    expect(await triesOf(() => db.query("SELECT fail($1)", [code]), code)).toBe(tries);
    const inTransaction = (): Promise<unknown> => db.transaction((tx) => tx.query("SELECT fail($1)", [code]));
    expect(await triesOf(inTransaction, code)).toBe(tries);
  }
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

/** What a statement failed with. */
const failureOf = (run: Promise<unknown>): Promise<unknown> =>
  run.then(
    () => {
      throw new Error("it did not fail");
    },
    (error: unknown) => error,
  );

test("what PostgreSQL rolled back, or never got, is told apart from what may have been committed", async () => {
  await db.query("CREATE TABLE once (text text PRIMARY KEY)");
  const late = db.transaction(async (tx) => {
    await tx.query("SET LOCAL statement_timeout = 10");
    await tx.query("SELECT pg_sleep(10)");
  });
  late.catch(() => undefined); // awaited below, perhaps after it has failed
  const nobody = createDatabase({ url: "postgres://nobody@127.0.0.1:1/none", log: silentLog });
  const full = createDatabase({ url: database.url, log: silentLog, poolMax: 1 });
  full.pool.options.connectionTimeoutMillis = 50;
  const only = await full.pool.connect();
  const failures = [
    db.query("SELECT 1 / 0"),
    db.query("INSERT INTO once VALUES (NULL)"),
    db.query("SELECT * FROM nowhere"),
    late,
    nobody.query("SELECT 1"),
    full.query("SELECT 1"),
  ];
  const errors = await Promise.all(failures.map(failureOf));
  expect(errors.filter((error) => !isUndone(error))).toEqual([]);
  const pid = await only.query<{ pid: number }>("SELECT pg_backend_pid() AS pid");
  const running = failureOf(only.query("INSERT INTO once SELECT pg_sleep(10)::text"));
  await expect
    .poll(() => db.query("SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'PgSleep'", [pid.rows[0]?.pid]))
    .toHaveLength(1);
  only.on("error", () => undefined);
  await db.query("SELECT pg_terminate_backend($1)", [pid.rows[0]?.pid]);
  expect(isUndone(await running)).toBe(false);
  const lost = ["Connection terminated unexpectedly", "Query read timeout"].map((message) => new Error(message));
  for (const error of [...lost, Object.assign(new Error("read ECONNRESET"), { code: "ECONNRESET" })]) {
    expect([isUndone(error), isAway(error)]).toEqual([false, true]);
  }
  only.release(true);
  await Promise.all([nobody.stop(), full.stop()]);
});

/** With that SQLSTATE. */
const failing = (code: string): Promise<unknown> => failureOf(db.query("SELECT fail($1)", [code]));

test("a database that is away, full or held up is told apart from a statement that is wrong", async () => {
  for (const code of ["08006", "53300", "57P01", "57014", "55P03", "25P03", "40001", "40P01"]) {
    expect([code, isAway(await failing(code))]).toEqual([code, true]);
  }
  for (const code of ["23505", "22012", "42501", "P0001", "XX000"]) {
    expect([code, isAway(await failing(code))]).toEqual([code, false]);
  }
  expect(isAway(new Error("something else"))).toBe(false);
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
