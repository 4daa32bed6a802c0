/** Which schema a process takes: commands never bring one up to date under a server that may be running on it. */
import { readdir, readFile } from "node:fs/promises";

import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import { runChecks } from "#cli/checks.ts";
import { openDatabase, type OpenOptions, type Parts } from "#cli/context.ts";
import { readConfig } from "#platform/config.ts";
import { stopAll } from "#platform/lifecycle.ts";
import { schemaState } from "#platform/migrate.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";

let database: TestDatabase;
beforeEach(async () => {
  database = await createTestDatabase();
});
afterEach(async () => {
  vi.unstubAllEnvs();
  await database.drop();
});

/** As a command opens it, or with `upgrade` as a server does; the owner. */
async function open(options?: OpenOptions): Promise<void> {
  const parts: Parts = [];
  try {
    await openDatabase(readConfig({ DATABASE_URL: database.url }), silentLog, parts, options);
  } finally {
    await stopAll(parts, silentLog);
  }
}

/** What the version of the first migration left. */
async function goBack(): Promise<void> {
  const { db } = database;
  await db.query("DROP SCHEMA public CASCADE");
  await db.query("CREATE SCHEMA public");
  await db.query(await readFile("src/platform/migrations/0001_ledger_keys_rollouts.sql", "utf8"));
  await db.query(
    "CREATE TABLE schema_migrations (id serial PRIMARY KEY, name text NOT NULL, run_on timestamp NOT NULL)",
  );
  await db.query("INSERT INTO schema_migrations (name, run_on) VALUES ('0001_ledger_keys_rollouts', now())");
}

describe("an empty database", () => {
  test("gets its schema from whoever comes first, a command too", async () => {
    await database.db.query("DROP SCHEMA public CASCADE");
    await database.db.query("CREATE SCHEMA public");
    expect(await schemaState(database.db)).toMatchObject({ empty: true });
    await open();
    expect(await schemaState(database.db)).toEqual({ empty: false, missing: [], unknown: [] });
  });
});

describe("a database of an older version", async () => {
  const files = await readdir("src/platform/migrations");
  const missing = files
    .map((file) => file.replace(/\.sql$/, ""))
    .sort()
    .slice(1);
  const old = { empty: false, missing, unknown: [] };

  test("is left as it is by a command, which says what brings it up to date, and so by doctor", async () => {
    await goBack();
    await expect(open()).rejects.toThrow(
      new RegExp(`lacks ${missing.join(", ")}.*\`npm start\` of this version .* dream-engine database migrate$`, "s"),
    );
    vi.stubEnv("DATABASE_URL", database.url);
    vi.stubEnv("REDIS_URL", undefined);
    const lines: string[] = [];
    expect(await runChecks((line) => lines.push(line))).toBeGreaterThan(0);
    expect(lines.at(-1)).toMatch(/^problem {2}database and ledger: This database is of an older version/);
    expect(await schemaState(database.db)).toEqual(old);
  });

  test("is brought up to date by a server of its owner", async () => {
    await goBack();
    await open({ upgrade: true });
    expect(await schemaState(database.db)).toEqual({ ...old, missing: [] });
  });
});

describe("a database of a newer version", () => {
  test.for([[undefined], [{ upgrade: true }]] as const)("is refused, with %j", async ([options]) => {
    await database.db.query("INSERT INTO schema_migrations (name, run_on) VALUES ('9999_later', now())");
    await expect(open(options)).rejects.toThrow(/newer version .* does not know 9999_later\.\n/);
  });
});
