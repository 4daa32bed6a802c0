import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, expect, test } from "vitest";

import type { KeyId } from "#contract/ids.ts";
import { createKey, listKeys } from "#keys/keys.ts";
import { startUsageNotes } from "#keys/usage.ts";
import type { Database, Sql } from "#platform/database.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
});
afterAll(() => database.drop());

const NEVER_MS = 3_600_000;
const AT = Date.UTC(2026, 10, 22, 12);

const newKey = async (): Promise<KeyId> => (await createKey(db, { customer: "cus_used" }, randomBytes)).key_id;
const lastUsed = async (key: KeyId): Promise<number | undefined> =>
  (await listKeys(db, "cus_used")).find(({ key_id }) => key_id === key)?.last_used_at?.getTime();

test("writes the latest use of each key in one statement, when it stops", async () => {
  const [one, two, unused] = [await newKey(), await newKey(), await newKey()];
  let statements = 0;
  const counting: Sql = {
    query: (text, params) => {
      statements += 1;
      return db.query(text, params);
    },
  };
  let now = AT;
  const usage = startUsageNotes({ db: counting, clock: { now: () => now }, log: silentLog, flushEveryMs: NEVER_MS });
  usage.note(one);
  now += 1_000;
  usage.note(two);
  now += 1_000;
  usage.note(one);
  expect(statements).toBe(0);
  await usage.stop();
  await usage.stop();
  expect(statements).toBe(1);
  expect(await lastUsed(one)).toBe(AT + 2_000);
  expect(await lastUsed(two)).toBe(AT + 1_000);
  expect(await lastUsed(unused)).toBeUndefined();
});

test("writes every so often while it runs", async () => {
  const key = await newKey();
  const usage = startUsageNotes({ db, clock: { now: () => AT }, log: silentLog, flushEveryMs: 5 });
  usage.note(key);
  await expect.poll(() => lastUsed(key)).toBe(AT);
  await usage.stop();
});

test("of two gateways the later use stays, whichever writes last", async () => {
  const key = await newKey();
  for (const at of [AT + 5_000, AT]) {
    const usage = startUsageNotes({ db, clock: { now: () => at }, log: silentLog, flushEveryMs: NEVER_MS });
    usage.note(key);
    await usage.stop();
  }
  expect(await lastUsed(key)).toBe(AT + 5_000);
});

test("a database that is away loses nothing, and the next flush writes it", async () => {
  const key = await newKey();
  let away = true;
  let failures = 0;
  const failing: Sql = {
    query: (text, params) => {
      if (!away) return db.query(text, params);
      failures += 1;
      return Promise.reject(new Error("connection refused"));
    },
  };
  const usage = startUsageNotes({ db: failing, clock: { now: () => AT }, log: silentLog, flushEveryMs: 5 });
  usage.note(key);
  await expect.poll(() => failures).toBeGreaterThan(0);
  away = false;
  await expect.poll(() => lastUsed(key)).toBe(AT);
  await usage.stop();
});

test("holds no more keys than its bound", async () => {
  const keys = [await newKey(), await newKey(), await newKey()];
  const usage = startUsageNotes({
    db,
    clock: { now: () => AT },
    log: silentLog,
    flushEveryMs: NEVER_MS,
    keysMax: 2,
  });
  for (const key of keys) usage.note(key);
  await usage.stop();
  expect(await Promise.all(keys.map(lastUsed))).toEqual([AT, AT, undefined]);
});
