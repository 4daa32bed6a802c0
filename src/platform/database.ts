/**
 * PostgreSQL: one pool a process, every wait bounded. `bigint` columns come back as `bigint`, because money is
 * counted in them; the parser belongs to this pool alone and leaves the driver's global table as it is.
 */
import { createHash } from "node:crypto";

import { Client, DatabaseError, Pool, type PoolClient, TypeOverrides, types as driverTypes } from "pg";

import type { Service } from "./lifecycle.ts";
import type { Log } from "./log.ts";

/** What a function that reads or writes needs: the pool itself, or the transaction it runs in. */
export interface Sql {
  /** With `params` the statement is prepared once per connection under a name made from its text. */
  query<Row>(text: string, params?: readonly unknown[]): Promise<Row[]>;
}

export interface Database extends Sql, Service {
  /** READ COMMITTED; committed when `run` resolves, rolled back when it throws. */
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
/** A transaction of a process that hangs must not hold its row locks for ever. */
const IDLE_IN_TRANSACTION_TIMEOUT_MS = 30_000;

export function createDatabase({ url, log, poolMax = POOL_MAX }: DatabaseOptions): Database {
  const types = new TypeOverrides();
  types.setTypeParser(driverTypes.builtins.INT8, (text) => BigInt(text));
  const pool = new Pool({
    connectionString: url,
    max: poolMax,
    types,
    keepAlive: true,
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    statement_timeout: STATEMENT_TIMEOUT_MS,
    query_timeout: QUERY_TIMEOUT_MS,
    idle_in_transaction_session_timeout: IDLE_IN_TRANSACTION_TIMEOUT_MS,
  });
  // An idle connection that breaks is replaced by the pool; without a listener it would end the process.
  pool.on("error", (error) => log.warn({ err: error }, "lost an idle database connection"));

  async function transaction<T>(run: (tx: Sql) => Promise<T>): Promise<T> {
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
      await client.query("COMMIT");
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
    query: (text, params) => queryOn(pool, text, params),
    transaction,
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
    query: (text, params) => queryOn(client, text, params),
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

/** Whether a statement failed because it would have broken this constraint or unique index. */
export function violates(error: unknown, constraint: string): boolean {
  return error instanceof DatabaseError && error.code === "23505" && error.constraint === constraint;
}
