/** The queue in Redis: three connections a process, plus a blocking one that BullMQ makes for every consumer. */
import { createRedisBackend } from "bullmq";
import { Redis } from "ioredis";

import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";

import { createBullQueues } from "./bullmq.ts";
import type { QueueSystem } from "./job-queue.ts";
import { createSignals, type SignalKind, type Signals } from "./signals.ts";
import { throttledWarning } from "./throttled-warning.ts";

const CONNECT_TIMEOUT_MS = 10_000;
/** A producer's command fails rather than wait for ever on a Redis that is away. */
const PRODUCER_RETRIES = 3;
const COMMAND_TIMEOUT_MS = 15_000;
const KEEPALIVE_AFTER_MS = 10_000;
const RECONNECT_MIN_MS = 100;
const RECONNECT_MAX_MS = 5_000;

const COMMON = {
  lazyConnect: true,
  connectTimeout: CONNECT_TIMEOUT_MS,
  keepAlive: KEEPALIVE_AFTER_MS,
  retryStrategy: (times: number) => Math.min(RECONNECT_MIN_MS * 2 ** Math.min(times, 10), RECONNECT_MAX_MS),
};
const PRODUCER = { ...COMMON, maxRetriesPerRequest: PRODUCER_RETRIES, commandTimeout: COMMAND_TIMEOUT_MS };
const ENDLESS = { ...COMMON, maxRetriesPerRequest: null };

interface RedisAddress {
  readonly url: string;
  readonly log: Log;
}

export async function createRedisQueues({ url, log }: RedisAddress): Promise<QueueSystem> {
  const producer = new Redis(url, PRODUCER);
  const consumer = new Redis(url, ENDLESS);
  const subscriber = new Redis(url, ENDLESS);
  const close = await connectAll([producer, consumer, subscriber], log);
  return createBullQueues(
    {
      name: "redis",
      factory: createRedisBackend,
      producer,
      consumer,
      signals: signalsOver(producer, subscriber, log),
      close,
    },
    log,
  );
}

/** Signals without the queue. */
export async function createRedisSignals({ url, log }: RedisAddress): Promise<Signals & Service> {
  const producer = new Redis(url, PRODUCER);
  const subscriber = new Redis(url, ENDLESS);
  const close = await connectAll([producer, subscriber], log);
  return { ...signalsOver(producer, subscriber, log), stop: close };
}

/** Resolves with their end when all are connected. */
async function connectAll(connections: readonly Redis[], log: Log): Promise<() => Promise<void>> {
  const warn = throttledWarning(log, "queue connection error");
  let lastError: Error | undefined;
  for (const connection of connections) {
    connection.on("error", (error) => warn((lastError = error)));
    connection.setMaxListeners(0); // every Queue and Worker of BullMQ adds its own
  }
  const close = async (): Promise<void> => connections.forEach((connection) => connection.disconnect());
  try {
    await Promise.all(connections.map((connection) => connection.connect()));
  } catch (error) {
    await close();
    // ioredis rejects with "Connection is closed." and says why in the error event.
    throw new Error(`cannot use Redis: ${lastError?.message ?? "no connection"}`, { cause: error });
  }
  return close;
}

function signalsOver(producer: Redis, subscriber: Redis, log: Log): Signals & Service {
  // Channels, unlike keys, are shared by all databases of a server.
  const channelOf = (kind: SignalKind): string => `dream.${producer.options.db ?? 0}.${kind}`;
  return createSignals((receive) => {
    subscriber.on("message", (_channel, message) => receive(message));
    return {
      async send(kind, message) {
        await producer.publish(channelOf(kind), message);
      },
      // ioredis subscribes again after a reconnect.
      async listen(kind) {
        await subscriber.subscribe(channelOf(kind));
      },
      async close() {
        subscriber.disconnect();
      },
    };
  }, log);
}
