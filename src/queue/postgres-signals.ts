/** Signals over LISTEN/NOTIFY: published through the queue's pool, received on one dedicated connection that comes back. */
import pg from "pg";

import type { Log } from "#platform/log.ts";

import { createSignals, type SignalKind, type Signals } from "./signals.ts";

const BACKOFF_MIN_MS = 100;
const BACKOFF_MAX_MS = 5_000;
const CONNECT_TIMEOUT_MS = 10_000;
/** TCP keepalive starts here: a connection that vanished without a word is found within about a minute. */
const KEEPALIVE_AFTER_MS = 10_000;

const channelOf = (kind: SignalKind): string => `dream_${kind}`;

export function createPostgresSignals(url: string, pool: pg.Pool, log: Log): Signals & { stop(): Promise<void> } {
  /** Kinds that must be listened to on whichever connection is the current one. */
  const wanted = new Set<SignalKind>();
  let receive: (message: string) => void = () => undefined;
  let current: Promise<pg.Client> | undefined;
  let retry: NodeJS.Timeout | undefined;
  let stopped = false;

  async function connect(): Promise<pg.Client> {
    const client = new pg.Client({
      connectionString: url,
      connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
      query_timeout: CONNECT_TIMEOUT_MS,
      keepAlive: true,
      keepAliveInitialDelayMillis: KEEPALIVE_AFTER_MS,
      application_name: "dream-engine signals",
    });
    client.on("notification", ({ payload }) => receive(payload ?? ""));
    let lost = false;
    const reconnect = (error?: Error): void => {
      if (lost || stopped) return;
      lost = true;
      log.warn({ err: error }, "signal connection lost; signals are missed until it is back");
      client.removeAllListeners("notification");
      void client.end().catch(() => undefined); // it is broken already
      reconnectAfter(BACKOFF_MIN_MS);
    };
    client.on("error", reconnect);
    await client.connect();
    client.on("end", () => reconnect());
    for (const kind of wanted) await client.query(`LISTEN ${channelOf(kind)}`);
    return client;
  }

  function reconnectAfter(delayMs: number): void {
    retry = setTimeout(() => {
      current = connect();
      current.catch((error: unknown) => {
        if (stopped) return;
        log.warn({ err: error, retry_ms: delayMs }, "could not connect for signals");
        reconnectAfter(Math.min(delayMs * 2, BACKOFF_MAX_MS));
      });
    }, delayMs);
  }

  const signals = createSignals((receiver) => {
    receive = receiver;
    return {
      async send(kind, message) {
        await pool.query("SELECT pg_notify($1, $2)", [channelOf(kind), message]);
      },
      async listen(kind) {
        if (stopped) throw new Error("signals are stopped");
        wanted.add(kind);
        current ??= connect();
        const client = await current;
        await client.query(`LISTEN ${channelOf(kind)}`);
      },
    };
  }, log);

  return {
    ...signals,
    async stop() {
      stopped = true;
      clearTimeout(retry);
      const client = await current?.catch(() => undefined); // a connection that failed needs no end
      await client?.end();
    },
  };
}
