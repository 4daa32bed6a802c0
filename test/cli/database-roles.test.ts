import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, expect, test } from "vitest";

import type { Parts } from "#cli/context.ts";
import { openAs, workerDatabaseUrl } from "#cli/database-roles.ts";
import { createDatabase, type Database } from "#platform/database.ts";
import { stopAll } from "#platform/lifecycle.ts";
import { missingRights, PARTS } from "#platform/roles.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";

let database: TestDatabase;
const parts: Parts = [];
beforeAll(async () => {
  database = await createTestDatabase();
});
afterAll(async () => {
  await stopAll(parts, silentLog);
  await database.drop();
});

const nameOf = async (db: Database): Promise<string> => {
  const [row] = await db.query<{ name: string }>("SELECT current_user AS name");
  return row?.name ?? "";
};

test("each part has a role of its own on this database, also when several processes start at once", async () => {
  const owner = { db: database.db, url: database.url, random: randomBytes };
  const opened = await Promise.all(
    [1, 2, 3].flatMap(() => PARTS.map(async (part) => [part, await openAs(part, owner, silentLog, parts)] as const)),
  );
  for (const [part, db] of opened) {
    expect(await nameOf(db)).toMatch(new RegExp(`^dream_${part}_\\d+$`));
    expect(await missingRights(db, part)).toEqual([]);
    await expect(db.query("UPDATE ledger_entries SET detail = ''")).rejects.toThrow("permission denied");
  }
});

test("an owner that may not create roles runs a part under its own name, and workers are refused", async () => {
  const plain = `plain_${randomBytes(4).toString("hex")}`;
  await database.db.query(`CREATE ROLE ${plain} LOGIN PASSWORD 'test'`);
  await database.db.query(`GRANT USAGE ON SCHEMA public TO ${plain}`);
  await database.db.query(`ALTER TABLE shared_secrets OWNER TO ${plain}`);
  const url = new URL(database.url);
  url.username = plain;
  url.password = "test";
  const db = createDatabase({ url: url.href, log: silentLog });
  parts.push(["plain", db]);

  const owner = { db, url: url.href, random: randomBytes };
  expect(await nameOf(await openAs("gateway", owner, silentLog, parts))).toBe(plain);
  await expect(workerDatabaseUrl(owner)).rejects.toThrow("Give it CREATEROLE, or set REDIS_URL");
});
