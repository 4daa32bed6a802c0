/**
 * The queue inside PostgreSQL: BullMQ's tables in a schema of their own, LISTEN/NOTIFY for wake-ups and signals.
 * A role that may use that schema and nothing else can run workers (`grantQueue`): it cannot see the ledger.
 * LISTEN needs sessions, so no transaction-pooling proxy in between.
 */
import {
  assertSchemaCompatibility,
  createPostgresBackend,
  type PgPool,
  runMigrations,
  SchemaMigrationRequiredError,
} from "bullmq";
import { escapeIdentifier, Pool } from "pg";

import { ConfigError } from "#platform/config.ts";
import { errorCode } from "#platform/error-code.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";

import { createBullQueues } from "./bullmq.ts";
import type { QueueSystem } from "./job-queue.ts";
import { createPostgresListener } from "./postgres-listener.ts";
import { createSignals, type SignalKind, type Signals } from "./signals.ts";
import { throttledWarning } from "./throttled-warning.ts";

const SCHEMA = "bullmq";
/** Every consumer and the signals hold one connection for good; the rest is for statements of a few ms. */
const POOL_MAX = 10;
const CONNECT_TIMEOUT_MS = 10_000;
/** Longer than any statement of ours needs, short enough that a lost connection is noticed. */
const QUERY_TIMEOUT_MS = 15_000;
/**
 * A commit that is lost with the database server is a job added or finished twice or not at all, which the sweep and
 * idempotent settlement repair anyway; waiting for the disk at each hop would double the queue's latency.
 */
const SESSION_OPTIONS = `-c search_path=${SCHEMA} -c synchronous_commit=off`;

const channelOf = (kind: SignalKind): string => `dream_${kind}`;

/** `migrate`: bring BullMQ's schema up to date first (safe when several processes do); needs its owner's rights. */
export async function createPostgresQueues({
  url,
  log,
  migrate,
}: {
  readonly url: string;
  readonly log: Log;
  readonly migrate: boolean;
}): Promise<QueueSystem> {
  const pool = openPool(url, POOL_MAX, log);
  pool.setMaxListeners(0); // every Queue and Worker of BullMQ adds an error listener

  try {
    const client = await pool.connect();
    try {
      await (migrate ? runMigrations(client, SCHEMA) : assertSchemaCompatibility(client, SCHEMA));
    } finally {
      client.release();
    }
  } catch (error) {
    await pool.end();
    throw unusableQueue(error, migrate) ?? error;
  }
  const connection = pool as PgPool; // BullMQ describes pg's pool by hand, a little narrower than @types/pg does
  return createBullQueues(
    {
      name: "postgres",
      factory: createPostgresBackend,
      producer: connection,
      consumer: connection,
      signals: signalsOver(pool, url, log),
      close: () => pool.end(),
    },
    log,
  );
}

/** Signals without the queue: NOTIFY and LISTEN need no right in the database but to connect. */
export function createPostgresSignals({ url, log }: { readonly url: string; readonly log: Log }): Signals & Service {
  const pool = openPool(url, 1, log); // connects when something is published, if ever
  const signals = signalsOver(pool, url, log);
  return {
    ...signals,
    async stop() {
      await signals.stop();
      await pool.end();
    },
  };
}

function openPool(url: string, max: number, log: Log): Pool {
  const pool = new Pool({
    connectionString: url,
    max,
    keepAlive: true,
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    query_timeout: QUERY_TIMEOUT_MS,
    options: SESSION_OPTIONS,
    application_name: "dream-engine queue",
  });
  pool.on("error", throttledWarning(log, "queue connection lost"));
  return pool;
}

const signalsOver = (pool: Pool, url: string, log: Log): Signals & Service =>
  createSignals((receive) => {
    const listener = createPostgresListener(url, receive, log);
    return {
      async send(kind, message) {
        await pool.query("SELECT pg_notify($1, $2)", [channelOf(kind), message]);
      },
      listen: (kind) => listener.listen(channelOf(kind)),
      close: () => listener.stop(),
    };
  }, log);

/** What the owner of the database can solve; null for anything else. */
function unusableQueue(error: unknown, migrate: boolean): ConfigError | null {
  if (error instanceof SchemaMigrationRequiredError) {
    return new ConfigError(
      "DATABASE_URL: there is no queue in that database yet; its owner makes it with `dream-engine database migrate`",
    );
  }
  if (errorCode(error) !== "42501") return null;
  if (migrate) {
    return new ConfigError(
      `DATABASE_URL: its role may not make the queue's schema ${SCHEMA} in that database; it needs GRANT CREATE ON DATABASE`,
    );
  }
  return new ConfigError(
    "DATABASE_URL: its role may not use the queue in that database; its owner lets it with\n" +
      "  dream-engine database grant <role> --as worker (or gateway, settlement, scheduler)",
  );
}

/**
 * Lets `role` run workers on this queue: the bullmq schema as it is after the migrations, and nothing else. (Functions
 * and types are usable by everyone who may use the schema; NOTIFY and LISTEN need no grant.) Idempotent.
 */
export async function grantQueue(sql: { query(text: string): Promise<unknown> }, role: string): Promise<void> {
  const name = escapeIdentifier(role);
  await sql.query(`GRANT USAGE ON SCHEMA ${SCHEMA} TO ${name}`);
  await sql.query(`GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA ${SCHEMA} TO ${name}`);
  await sql.query(`GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA ${SCHEMA} TO ${name}`);
}

/** Takes all of it away from a role that had it for another process. The schema is there. */
export async function withdrawQueue(sql: { query(text: string): Promise<unknown> }, role: string): Promise<void> {
  const name = escapeIdentifier(role);
  await sql.query(`REVOKE ALL ON ALL TABLES IN SCHEMA ${SCHEMA} FROM ${name}`);
  await sql.query(`REVOKE ALL ON ALL SEQUENCES IN SCHEMA ${SCHEMA} FROM ${name}`);
  await sql.query(`REVOKE ALL ON SCHEMA ${SCHEMA} FROM ${name}`);
}
