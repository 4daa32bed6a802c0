/** A database of its own for each test file: a clone of the migrated template, which takes some 50 ms. */
import { randomBytes } from "node:crypto";

import { Client } from "pg";
import { expect, inject } from "vitest";

import { createDatabase, type Database } from "#platform/database.ts";
import { createLog, type Log } from "#platform/log.ts";
import type { Part } from "#platform/roles.ts";

import { TEMPLATE_DATABASE } from "./global-setup.ts";

export interface TestDatabase {
  readonly url: string;
  readonly db: Database;
  /** The same database as that process's role sees it (src/platform/roles.ts); closed with `db`. */
  as(part: Part): Database;
  urlAs(part: Part): string;
  /** Closes `db` and removes the database, whoever is still connected to it. */
  drop(): Promise<void>;
}

export const silentLog: Log = createLog("test", "silent");

export async function createTestDatabase(options: { poolMax?: number } = {}): Promise<TestDatabase> {
  const name = `test_${randomBytes(6).toString("hex")}`;
  await onServer(`CREATE DATABASE ${name} TEMPLATE ${TEMPLATE_DATABASE}`);
  const url = new URL(inject("postgresUrl"));
  url.pathname = name;
  const db = createDatabase({ url: url.href, log: silentLog, ...options });
  const limited = new Map<Part, Database>();
  const urlAs = (part: Part): string => {
    const asRole = new URL(url);
    asRole.username = `test_${part}`; // made with the template
    asRole.password = "test";
    return asRole.href;
  };
  return {
    url: url.href,
    db,
    urlAs,
    as(part) {
      const opened = limited.get(part) ?? createDatabase({ url: urlAs(part), log: silentLog, ...options });
      limited.set(part, opened);
      return opened;
    },
    drop: async () => {
      for (const each of [db, ...limited.values()]) await each.stop();
      await onServer(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`);
    },
  };
}

async function onServer(statement: string): Promise<void> {
  const client = new Client({ connectionString: inject("postgresUrl") });
  await client.connect();
  try {
    await client.query(statement);
  } finally {
    await client.end();
  }
}

/** Until at least that many statements of this database wait for a lock. */
export async function untilWaitingForLocks(db: Database, count: number): Promise<void> {
  const waiting = async (): Promise<number> => {
    const rows = await db.query(
      "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
    );
    return rows.length;
  };
  await expect.poll(waiting, { timeout: 5_000, interval: 10 }).toBeGreaterThanOrEqual(count);
}
