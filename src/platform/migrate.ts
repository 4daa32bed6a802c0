/** Brings a database to the newest schema: `migrations/NNNN_name.sql`, forward only, each applied once. */
import { fileURLToPath } from "node:url";

import { runner } from "node-pg-migrate";

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
