/**
 * PostgreSQL: one pool a process, every wait bounded. `bigint` columns come back as `bigint`, because money is
 * counted in them; the parser belongs to this pool alone and leaves the driver's global table as it is.
 */
import { createHash } from "node:crypto";
import { hostname } from "node:os";

import { Client, DatabaseError, Pool, type PoolClient, TypeOverrides, types as driverTypes } from "pg";

import { errorCode } from "./error-code.ts";
import type { Service } from "./lifecycle.ts";
import type { Log } from "./log.ts";

/** What a function that reads or writes needs: the pool itself, or the transaction it runs in. */
export interface Sql {
  /** With `params` the statement is prepared once per connection under a name made from its text. */
  query<Row>(text: string, params?: readonly unknown[]): Promise<Row[]>;
}

/** Outside a transaction, a statement that PostgreSQL rolled back to be repeated (isRepeatable) is repeated. */
export interface Database extends Sql, Service {
  /**
   * READ COMMITTED; committed when `run` resolves, rolled back when it throws. When PostgreSQL rolled it back to be
   * repeated, `run` runs again from its start: it must keep no state of a run that failed, and have no effect outside
   * the transaction that may not happen twice.
   */
  transaction<T>(run: (tx: Sql) => Promise<T>): Promise<T>;
  /** For what needs a connection of its own (LISTEN, session locks). */
  readonly pool: Pool;
}

export interface DatabaseOptions {
  readonly url: string;
  readonly log: Log;
  readonly poolMax?: number;
}

const POOL_MAX = 10;
/** Longer than any healthy statement of ours by two orders; ends what waits behind a lock that nobody gives up. */
export const STATEMENT_TIMEOUT_MS = 15_000;
/** The client's own bound, for a server that stopped answering: later than the server's, which leaves a better error. */
const QUERY_TIMEOUT_MS = 20_000;
/** How long a caller waits for a free connection or a new one. */
const CONNECT_TIMEOUT_MS = 10_000;
/** A new connection costs tens of milliseconds, which a planner feels after each of its pauses; an idle one some megabytes. */
const IDLE_CONNECTION_KEPT_MS = 300_000;
/** A transaction of a process that hangs must not hold its row locks for ever. */
const IDLE_IN_TRANSACTION_TIMEOUT_MS = 30_000;

/** PostgreSQL cuts names at 63 characters; the end of a host's name tells it from others (a pod's). */
const HOST_CHARACTERS_MAX = 32;
let pools = 0;
/**
 * What a server shows as the name of a pool's connections: no two pools share one, so that those of a process that hangs can
 * be ended, and no others (rollouts/leader.ts).
 */
const nextName = (): string => `dream-engine ${process.pid}:${++pools} ${hostname().slice(-HOST_CHARACTERS_MAX)}`;

export function createDatabase({ url, log, poolMax = POOL_MAX }: DatabaseOptions): Database {
  const types = new TypeOverrides();
  types.setTypeParser(driverTypes.builtins.INT8, (text) => BigInt(text));
  const pool = new Pool({
    connectionString: url,
    application_name: nextName(),
    max: poolMax,
    types,
    keepAlive: true,
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    idleTimeoutMillis: IDLE_CONNECTION_KEPT_MS,
    statement_timeout: STATEMENT_TIMEOUT_MS,
    query_timeout: QUERY_TIMEOUT_MS,
    idle_in_transaction_session_timeout: IDLE_IN_TRANSACTION_TIMEOUT_MS,
  });
  // An idle connection that breaks is replaced by the pool; without a listener it would end the process.
  pool.on("error", (error) => log.warn({ err: error }, "lost an idle database connection"));

  async function runTransaction<T>(run: (tx: Sql) => Promise<T>): Promise<T> {
    const client = await pool.connect();
    let broken = false;
    // Without a listener, a connection that dies between two statements would end the process.
    const onError = (error: Error): void => {
      broken = true;
      log.warn({ err: error }, "lost the connection of a transaction");
    };
    client.on("error", onError);
    try {
      await client.query("BEGIN");
      const result = await run({ query: (text, params) => queryOn(client, text, params) });
      const { command } = await client.query("COMMIT");
      // PostgreSQL answers so, and not with an error, where a statement had failed and `run` went on all the same.
      if (command !== "COMMIT") throw new Error("the transaction was rolled back: a statement in it had failed");
      return result;
    } catch (error) {
      // A connection that cannot roll back is closed, and the server rolls back for it.
      await client.query("ROLLBACK").catch(() => {
        broken = true;
      });
      throw error;
    } finally {
      client.off("error", onError);
      client.release(broken);
    }
  }

  let stopped: Promise<void> | undefined;
  return {
    pool,
    query: (text, params) => repeatedly(() => queryOn(pool, text, params)),
    transaction: (run) => repeatedly(() => runTransaction(run)),
    stop: () => (stopped ??= pool.end()),
  };
}

/** A connection outside the pool. */
export interface Connection extends Sql {
  /** Does not wait for a server that no longer answers. */
  close(): void;
}

/** For what must not wait behind others for the pool; connecting and each statement take at most `timeoutMs`. */
export async function connectAlone({ pool }: Database, timeoutMs: number): Promise<Connection> {
  const client = new Client({
    ...pool.options,
    connectionTimeoutMillis: timeoutMs,
    statement_timeout: timeoutMs,
    query_timeout: timeoutMs,
  });
  // The next statement fails and says so; without a listener it would end the process.
  client.on("error", () => undefined);
  await client.connect();
  return {
    query: (text, params) => repeatedly(() => queryOn(client, text, params)),
    close: () => void client.end().catch(() => undefined),
  };
}

async function queryOn<Row>(
  target: Pool | Client | PoolClient,
  text: string,
  params: readonly unknown[] | undefined,
): Promise<Row[]> {
  const { rows } = params
    ? await target.query({ name: statementName(text), text, values: [...params] })
    : await target.query(text);
  return rows as Row[]; // the caller states the shape of what its own SQL returns
}

/** Statement texts are literals of this code base, so there are few of them. */
const statementNames = new Map<string, string>();

function statementName(text: string): string {
  const known = statementNames.get(text);
  if (known !== undefined) return known;
  const name = createHash("sha256").update(text).digest("hex").slice(0, 32);
  statementNames.set(text, name);
  return name;
}

/** Deadlocks end with one side's success, so the other hardly meets them twice; more means a lock order gone wrong. */
const TRIES_MAX = 5;

/** For what is a transaction of its own. */
async function repeatedly<T>(run: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await run();
    } catch (error) {
      if (!isRepeatable(error) || tries === TRIES_MAX) throw error;
    }
  }
}

/**
 * serialization_failure and deadlock_detected: PostgreSQL rolled the whole transaction back, not for what it asked but for
 * whom it met, and expects it again. No other error is that certain: after a lost connection it may have been committed.
 */
const isRepeatable = (error: unknown): boolean =>
  error instanceof DatabaseError && (error.code === "40001" || error.code === "40P01");

/** Whether a statement failed for its own parameters: a bad value (class 22) or a broken constraint (class 23). */
export function rejectsTheData(error: unknown): boolean {
  return error instanceof DatabaseError && /^2[23]/.test(error.code ?? "");
}

/** Whether a statement failed because it would have broken this constraint or unique index. */
export function violates(error: unknown, constraint: string): boolean {
  return error instanceof DatabaseError && error.code === "23505" && error.constraint === constraint;
}

/**
 * Errors by which a server says that it rolled back: limits it met, what the statement asked for, whom it met, its time.
 * Not class 08 or 57P01/57P02, by which a connection ends, perhaps after a commit. 57P03: it took nothing up yet.
 */
const ROLLED_BACK = /^(2[2358]|3D|40001|40P01|42|5[345]|57014|57P03|P0)/;
/** Of the driver and its pool, which give these no code: there was no connection to send anything over. */
const NEVER_SENT =
  /^(timeout exceeded when trying to connect|timeout expired|Connection terminated due to connection timeout)$/;

/**
 * Whether a single statement that failed so, outside a transaction, is certain to have left nothing. False means that
 * nobody knows: the connection broke, and the server may have committed before or may do so yet.
 */
export function isUndone(error: unknown): boolean {
  if (error instanceof DatabaseError) return ROLLED_BACK.test(error.code ?? "");
  if (!(error instanceof Error)) return false;
  // These come of connecting alone; a connection that stood breaks with others.
  const refused = ["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN"].includes(errorCode(error) ?? "");
  return refused || NEVER_SENT.test(error.message);
}

/** Of the driver and its pool, which give these no code. */
const AWAY_MESSAGES =
  /timeout exceeded when trying to connect|timeout expired|Connection terminated|Query read timeout|not queryable/;
const AWAY_SYSTEM_CODES = new Set([
  "ECONNREFUSED",
  "ECONNRESET",
  "EPIPE",
  "ETIMEDOUT",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "ENOTFOUND",
  "EAI_AGAIN",
]);
/**
 * Class 08 is PostgreSQL's own for connections, 53 for what it ran out of, 57P0x a server that shuts down or starts,
 * 57014 and 55P03 a lock that was waited for too long, 25P03 a transaction that was; 40001 and 40P01 have been repeated.
 */
const AWAY_SQL_STATES = /^(08|53|57P0|57014|55P03|25P03|40001|40P01)/;

/** Whether the database could not be reached or did not get to it: the same may succeed a moment later. */
export function isAway(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  const code = errorCode(error) ?? "";
  if (error instanceof DatabaseError) return AWAY_SQL_STATES.test(code);
  return AWAY_SYSTEM_CODES.has(code) || AWAY_MESSAGES.test(error.message);
}
