import { randomBytes } from "node:crypto";

import { afterAll, afterEach, beforeAll, expect, test } from "vitest";

import { createDatabase, type Database } from "#platform/database.ts";

import { type Fault, type PgProxy, startPgProxy } from "./pg-proxy.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "./postgres.ts";

let database: TestDatabase;
let proxy: PgProxy;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase();
  await database.db.query(`CREATE TABLE seen (name text)`);
  proxy = await startPgProxy(database.url);
  db = createDatabase({ url: proxy.url, log: silentLog, poolMax: 2 });
});
afterEach(() => {
  proxy.faultOf = () => null;
});
afterAll(async () => {
  await db.stop();
  await proxy.stop();
  await database.drop();
});

const LOST = /Connection terminated|ECONNRESET|EPIPE/;
const INSERT = `INSERT INTO seen (name) VALUES ($1)`;
const isSeen = async (name: string): Promise<boolean> =>
  (await database.db.query(`SELECT FROM seen WHERE name = $1`, [name])).length === 1;
const faultAt = (pattern: RegExp, fault: Fault): void => {
  proxy.faultOf = ({ text }) => (pattern.test(text) ? fault : null);
};

test("without a fault it is a database as any other, prepared statements and transactions included", async () => {
  const value = "x".repeat(300_000);
  expect(await db.query(`SELECT $1 AS value, 7::bigint AS n`, [value])).toEqual([{ value, n: 7n }]);
  expect(await db.query(`SELECT $1 AS value, 7::bigint AS n`, ["again"])).toEqual([{ value: "again", n: 7n }]);
  await db.transaction((tx) => tx.query(INSERT, ["committed"]));
  await expect(db.query(`SELECT 1/0`)).rejects.toThrow("division by zero");
  expect(await isSeen("committed")).toBe(true);
});

test.each([
  ["cut before", false],
  ["cut after", true],
] as const)("a statement that is %s the server's work has been done: %s", async (fault, done) => {
  const name = randomBytes(4).toString("hex");
  faultAt(/INSERT/, fault);
  const before = proxy.cuts;
  await expect(db.query(INSERT, [name])).rejects.toThrow(LOST);
  await proxy.untilServerNoticed(database.db);
  expect(proxy.cuts).toBe(before + 1);
  expect(await isSeen(name)).toBe(done);

  faultAt(/^COMMIT/, fault);
  await expect(db.transaction((tx) => tx.query(INSERT, [`${name} in a transaction`]))).rejects.toThrow(LOST);
  await proxy.untilServerNoticed(database.db);
  expect(await isSeen(`${name} in a transaction`)).toBe(done);
});

test("a connection that is cut during a command leaves it done or not, and the server soon knows", async () => {
  faultAt(/INSERT/, "cut during");
  const results = new Set<boolean>();
  for (let round = 0; round < 10; round++) {
    const name = randomBytes(4).toString("hex");
    await expect(db.query(INSERT, [name])).rejects.toThrow(LOST);
    await proxy.untilServerNoticed(database.db);
    results.add(await isSeen(name));
  }
  expect(results.has(true)).toBe(true);
});

test("a delayed command arrives late and whole", async () => {
  faultAt(/SELECT 'late'/, { delay_ms: 60 });
  const started = performance.now();
  expect(await db.query(`SELECT 'late' AS word`)).toEqual([{ word: "late" }]);
  expect(performance.now() - started).toBeGreaterThan(55);
});
