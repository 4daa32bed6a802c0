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

export interface SchemaState {
  /** Nobody has migrated this database yet. */
  readonly empty: boolean;
  /** Names of the migrations that it lacks, oldest first. */
  readonly missing: readonly string[];
  /** Names of migrations that this version of the program does not know: a newer one has migrated it. */
  readonly unknown: readonly string[];
}

/** Throws PostgreSQL's 42501 or 42P01 to a role that may not read which migrations there were. */
export async function schemaState(sql: Sql): Promise<SchemaState> {
  const known = (await readdir(MIGRATIONS_DIR))
    .flatMap((file) => (file.endsWith(".sql") ? [file.slice(0, -".sql".length)] : []))
    .sort();
  // Not by to_regclass: to a role that may not use the schema, nothing in it exists.
  const [table] = await sql.query(
    "SELECT FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname = 'schema_migrations'",
  );
  const rows = table ? await sql.query<{ name: string }>("SELECT name FROM schema_migrations ORDER BY name") : [];
  const applied = rows.map(({ name }) => name);
  return {
    empty: applied.length === 0,
    missing: known.filter((name) => !applied.includes(name)),
    unknown: applied.filter((name) => !known.includes(name)),
  };
}
