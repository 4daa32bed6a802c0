/**
 * The PostgreSQL that a laptop needs no installation for: real binaries from npm, data under `DATA_DIR/postgres`.
 *
 * Several of our processes may use it at once (`serve`, and a `keys create` beside it), and each may die at any
 * moment, so nobody owns it. Every user holds a shared advisory lock on a connection of its own; the last one to leave
 * gets the lock alone and stops the server. A killed user's lock ends with its connection. A server that nobody
 * stopped (everything was killed) is adopted by the next start.
 */
import { setTimeout as delay } from "node:timers/promises";

import { Client } from "pg";

import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";

import { type Connection, createCluster, urlOf } from "./postgres-cluster.ts";
import { openServer, type PostgresServer } from "./postgres-server.ts";
import { UserError } from "./user-error.ts";

/** Advisory lock ids, first of the pair: ours; any number that nothing else on this server uses. */
const LOCKS = 0x6472_6561;
const LOCK_IN_USE = 1;
const LOCK_SERVE = 2;

/** A crash recovery after a power cut can take a while on a slow disk. */
const START_TIMEOUT_MS = 90_000;
const RETRY_EVERY_MS = 150;
/** Pause before a lost server is looked for again. */
const REOPEN_AFTER_MS = 500;

export interface EmbeddedPostgres extends Service {
  /** As the owner of everything. Holds the password: never log it. */
  readonly url: string;
  /**
   * Resolves when the server came back under another address, because somebody took its port while it was down:
   * everybody here holds the old one, so the process has to start anew.
   */
  readonly moved: Promise<Error>;
  /** Takes the place of the one `serve` of this data folder; false when another process has it. */
  claimServe(): Promise<boolean>;
}

/** Starts the server of this data folder, or joins the one that runs. `onStep` hears what takes time. */
export async function openEmbeddedPostgres(options: {
  readonly dataDir: string;
  readonly log: Log;
  readonly onStep?: (step: string) => void;
}): Promise<EmbeddedPostgres> {
  const { dataDir, log, onStep = () => undefined } = options;
  const cluster = await createCluster(dataDir, onStep);
  const server = await openServer(cluster, log);
  let held = await join(server, onStep);
  let serving = false;
  const stopped = new AbortController();
  const url = urlOf(held.connection);
  const moved = Promise.withResolvers<Error>();

  // A server that dies under us (killed, out of memory) is started again under the same address; pools reconnect.
  const watch = (client: Client): void => {
    client.once("end", () => {
      if (stopped.signal.aborted) return;
      log.error("the embedded PostgreSQL went away; starting it again");
      reopening = reopen();
    });
  };
  const reopen = async (): Promise<void> => {
    while (!stopped.signal.aborted) {
      await delay(REOPEN_AFTER_MS);
      try {
        held = await join(server, () => undefined);
        watch(held.client);
        if (urlOf(held.connection) !== url) {
          moved.resolve(new UserError("The embedded PostgreSQL lost its port to another program. Start again."));
        }
        if (serving && !(await lock(held.client, LOCK_SERVE))) log.error("another serve took this data folder over");
        return;
      } catch (error) {
        log.error({ err: error }, "could not start the embedded PostgreSQL again; trying once more");
      }
    }
  };
  let reopening: Promise<void> = Promise.resolve();
  watch(held.client);
  // A process that ends without stopping us (a second Ctrl-C): the server goes when its last connection has gone.
  const onExit = (): void => server.stopWhenUnused();
  process.once("exit", onExit);

  return {
    url,
    moved: moved.promise,
    async claimServe() {
      serving = await lock(held.client, LOCK_SERVE);
      return serving;
    },
    async stop() {
      if (stopped.signal.aborted) return;
      stopped.abort();
      await reopening;
      await leave(held.client, server, log);
      process.off("exit", onExit);
    },
  };
}

interface Held {
  readonly client: Client;
  readonly connection: Connection;
}

/** Starts the server where it does not run, and joins its users. */
async function join(server: PostgresServer, onStep: (step: string) => void): Promise<Held> {
  const deadline = Date.now() + START_TIMEOUT_MS;
  while (Date.now() < deadline) {
    const connection = await server.ensureRunning(onStep, deadline);
    const client = new Client({ connectionString: urlOf(connection), application_name: "dream-engine holder" });
    client.on("error", () => undefined); // told to `end` as well; without a listener it would end the process
    try {
      await client.connect();
      if (await lockShared(client)) return { client, connection };
    } catch {
      // It stopped between our two looks at it; the next round starts it again.
    }
    await client.end().catch(() => undefined); // was never connected, or is gone already
    await delay(RETRY_EVERY_MS); // its last user is stopping it
  }
  throw new UserError(`The embedded PostgreSQL did not start within ${START_TIMEOUT_MS / 1000} s.`);
}

/** The last user stops the server: it is the one that can have the lock alone. */
async function leave(client: Client, server: PostgresServer, log: Log): Promise<void> {
  try {
    await client.query("SELECT pg_advisory_unlock_shared($1, $2)", [LOCKS, LOCK_IN_USE]);
    if (await lock(client, LOCK_IN_USE)) await server.stop();
  } catch (error) {
    log.warn({ err: error }, "could not ask who else uses the embedded PostgreSQL; it is left running");
  } finally {
    await client.end().catch(() => undefined); // the server has ended the connection already
  }
}

async function lock(client: Client, name: number): Promise<boolean> {
  const { rows } = await client.query<{ got: boolean }>("SELECT pg_try_advisory_lock($1, $2) AS got", [LOCKS, name]);
  return rows[0]?.got === true;
}

async function lockShared(client: Client): Promise<boolean> {
  const { rows } = await client.query<{ got: boolean }>("SELECT pg_try_advisory_lock_shared($1, $2) AS got", [
    LOCKS,
    LOCK_IN_USE,
  ]);
  return rows[0]?.got === true;
}
