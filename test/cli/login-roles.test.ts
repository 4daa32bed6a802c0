/** `database roles`: what a deployment's setup step runs before its processes start, at each upgrade again. */
import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, expect, test } from "vitest";

import { readPasswords } from "#cli/login-roles.ts";
import { createDatabase } from "#platform/database.ts";
import { missingRights, PARTS } from "#platform/roles.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";

import { run, type Ran } from "./command.ts";

const PREFIX = `dlr_${randomBytes(4).toString("hex")}_`;
const newPasswords = (...processes: readonly string[]): Record<string, string> =>
  Object.fromEntries(processes.map((name) => [`${name.toUpperCase()}_DB_PASSWORD`, randomBytes(12).toString("hex")]));

let database: TestDatabase;
beforeAll(async () => {
  database = await createTestDatabase();
  await database.db.query("DROP SCHEMA public CASCADE");
  await database.db.query("CREATE SCHEMA public");
});
afterAll(async () => {
  await database.drop();
});

const makeRoles = (env: Readonly<Record<string, string>>): Promise<Ran> =>
  run(["database", "roles", "--prefix", PREFIX], { DATABASE_URL: database.url, ...env });

async function rightsMissing(part: (typeof PARTS)[number], password: string): Promise<string[]> {
  const url = new URL(database.url);
  url.username = `${PREFIX}${part}`;
  url.password = password;
  const db = createDatabase({ url: url.href, log: silentLog });
  try {
    return await missingRights(db, part);
  } finally {
    await db.stop();
  }
}

test("makes the schema and a role for each process, and gives it another password when asked to", async () => {
  const first = newPasswords(...PARTS);
  const { code, stdout, stderr } = await makeRoles({ ...first, REDIS_URL: "redis://queue" });
  expect(code, stderr).toBe(0);
  expect(stdout.trim().split("\n")).toEqual(PARTS.map((part) => `${PREFIX}${part}: the ${part}'s role`));
  for (const part of PARTS)
    expect(await rightsMissing(part, first[`${part.toUpperCase()}_DB_PASSWORD`] ?? "")).toEqual([]);

  await database.db.query(`REVOKE ALL ON rollouts FROM ${PREFIX}gateway`);
  const second = newPasswords(...PARTS);
  expect((await makeRoles({ ...second, REDIS_URL: "redis://queue" })).code).toBe(0);
  expect(await rightsMissing("gateway", second["GATEWAY_DB_PASSWORD"] ?? "")).toEqual([]);
  await expect(rightsMissing("gateway", first["GATEWAY_DB_PASSWORD"] ?? "")).rejects.toThrow("password");

  await database.db.query(`ALTER ROLE ${PREFIX}gateway CREATEROLE`);
  const refused = await makeRoles({ ...newPasswords(...PARTS), REDIS_URL: "redis://queue" });
  await database.db.query(`ALTER ROLE ${PREFIX}gateway NOCREATEROLE`);
  expect(refused.code).not.toBe(0);
  expect(refused.stderr).toContain(`${PREFIX}gateway has more rights than any process should`);
  expect(await rightsMissing("gateway", second["GATEWAY_DB_PASSWORD"] ?? ""), "nothing was changed").toEqual([]);
});

test("with the queue in PostgreSQL workers have a role, too", async () => {
  const { code, stdout, stderr } = await makeRoles(newPasswords(...PARTS, "worker"));
  expect(code, stderr).toBe(0);
  expect(stdout).toContain(`${PREFIX}worker: the worker's role`);
});

test("says which passwords are missing, too short or the same, and shows none", () => {
  const passwords = newPasswords(...PARTS);
  expect([...readPasswords(passwords, PARTS).keys()]).toEqual([...PARTS]);
  const { RUNNER_DB_PASSWORD: _, ...without } = passwords;
  const wrong = (): unknown => readPasswords({ ...without, GATEWAY_DB_PASSWORD: "too-short" }, PARTS);
  expect(wrong).toThrow("GATEWAY_DB_PASSWORD, RUNNER_DB_PASSWORD: expected the password");
  expect(wrong).not.toThrow("too-short");
  const { GATEWAY_DB_PASSWORD: same = "" } = passwords;
  expect(() => readPasswords({ ...passwords, NOTIFIER_DB_PASSWORD: same }, PARTS)).toThrow("the same password");
});
