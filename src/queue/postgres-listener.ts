/** LISTEN on a dedicated connection that comes back after every loss. What is notified meanwhile is missed. */
import { setTimeout } from "node:timers/promises";

import { Client } from "pg";

import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";

const BACKOFF_MIN_MS = 100;
const BACKOFF_MAX_MS = 5_000;
const CONNECT_TIMEOUT_MS = 10_000;
/** TCP keepalive starts here: a connection that vanished without a word is found within about a minute. */
const KEEPALIVE_AFTER_MS = 10_000;

export interface PostgresListener extends Service {
  /** Resolves when the channel is listened to. `channel` is a plain identifier of ours. Idempotent. */
  listen(channel: string): Promise<void>;
}

/** Connects at the first `listen`, whose failure is the caller's to handle; later losses are this function's. */
export function createPostgresListener(url: string, receive: (payload: string) => void, log: Log): PostgresListener {
  /** What must be listened to on whichever connection is the current one. */
  const channels = new Set<string>();
  let current: Promise<Client> | undefined;
  /** The statement before: the driver no longer queues what comes while it runs. */
  let previous: Promise<unknown> = Promise.resolve();
  const stopped = new AbortController();

  async function connect(): Promise<Client> {
    const client = new Client({
      connectionString: url,
      connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
      query_timeout: CONNECT_TIMEOUT_MS,
      keepAlive: true,
      keepAliveInitialDelayMillis: KEEPALIVE_AFTER_MS,
      application_name: "dream-engine signals",
    });
    client.on("error", (error) => log.warn({ err: error }, "signal connection error"));
    client.on("notification", ({ payload }) => receive(payload ?? ""));
    await client.connect();
    client.on("end", () => {
      if (stopped.signal.aborted) return;
      log.warn("signal connection lost; signals are missed until it is back");
      current = connectAgain();
      current.catch(() => undefined); // rejects only when stopped meanwhile
    });
    try {
      for (const channel of channels) await client.query(`LISTEN ${channel}`);
    } catch (error) {
      client.removeAllListeners("end"); // whoever called connect() deals with this failure
      await client.end();
      throw error;
    }
    return client;
  }

  async function connectAgain(): Promise<Client> {
    for (let delayMs = BACKOFF_MIN_MS; ; delayMs = Math.min(delayMs * 2, BACKOFF_MAX_MS)) {
      await setTimeout(delayMs, undefined, { signal: stopped.signal });
      try {
        return await connect();
      } catch (error) {
        log.warn({ err: error }, "could not connect for signals");
      }
    }
  }

  return {
    async listen(channel) {
      stopped.signal.throwIfAborted();
      channels.add(channel);
      current ??= connect().catch((error: unknown) => {
        current = undefined; // tried again by the next call
        throw error;
      });
      const client = await current;
      const listening = previous.then(() => client.query(`LISTEN ${channel}`));
      previous = listening.catch(() => undefined); // the caller's to handle, below
      await listening;
    },
    async stop() {
      stopped.abort();
      const client = await current?.catch(() => undefined); // a connection that failed needs no end
      await client?.end();
    },
  };
}
