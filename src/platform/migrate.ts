/** Brings a database to the newest schema: `migrations/NNNN_name.sql`, forward only, each applied once. */
import { readdir } from "node:fs/promises";
import { fileURLToPath } from "node:url";

import { runner } from "node-pg-migrate";

import type { Sql } from "./database.ts";
import type { Log } from "./log.ts";

const MIGRATIONS_DIR = fileURLToPath(new URL("migrations", import.meta.url));
/** Bounds each statement, and the wait for another process that is migrating. */
const STATEMENT_TIMEOUT_MS = 60_000;

/** Safe to call from many processes at once: all but one wait for an advisory lock, then find nothing to do. */
export async function migrate(url: string, log: Log): Promise<void> {
  const applied = await runner({
    databaseUrl: { connectionString: url, statement_timeout: STATEMENT_TIMEOUT_MS },
    dir: MIGRATIONS_DIR,
    direction: "up",
    migrationsTable: "schema_migrations",
    advisoryLockMode: "wait",
    // All or nothing: an error half-way leaves the database as it was.
    singleTransaction: true,
    logger: {
      info: (message) => log.debug(message),
      warn: (message) => log.warn(message),
      error: (message) => log.error(message),
    },
  });
  if (applied.length > 0) log.info({ applied: applied.map(({ name }) => name) }, "database migrated");
}

/** Names of the migrations that this database lacks; for a process whose role may not migrate. */
export async function missingMigrations(sql: Sql): Promise<string[]> {
  const files = await readdir(MIGRATIONS_DIR);
  const applied = await sql.query<{ name: string }>("SELECT name FROM schema_migrations");
  const names = new Set(applied.map(({ name }) => name));
  return files
    .flatMap((file) => (file.endsWith(".sql") ? [file.slice(0, -".sql".length)] : []))
    .filter((name) => !names.has(name))
    .sort();
}
