/** The queue that the conformance tests run on either backend, in this process and in children. */
import { type ChildProcess, fork } from "node:child_process";
import { fileURLToPath } from "node:url";

import { Redis } from "ioredis";
import { Client } from "pg";
import { Type, type Static } from "typebox";

import type { JobId } from "#contract/ids.ts";
import type { Log } from "#platform/log.ts";
import type { JobQueue, QueueSystem } from "#queue/job-queue.ts";
import { openQueues } from "#queue/open-queues.ts";
import { parserOf } from "#queue/parse.ts";

const TestJob = Type.Object({ n: Type.Number() }, { additionalProperties: false });
export type TestJob = Static<typeof TestJob>;
const parseTestJob = parserOf(TestJob);

/** A job's `n` that says: not me. */
export const BYSTANDER = -1;

export interface QueueAddress {
  readonly redis_url: string | undefined;
  readonly database_url: string;
  readonly queue: string;
}

export async function openTestQueue(
  { redis_url, database_url, queue }: QueueAddress,
  log: Log,
): Promise<{ readonly queues: QueueSystem; readonly queue: JobQueue<TestJob> }> {
  const queues = await openQueues({ redis_url, database_url, migrate: false, log });
  return { queues, queue: queues.open(queue, parseTestJob) };
}

let jobs = 0;
export const newJobId = (): JobId => `rollout_${String((jobs += 1)).padStart(32, "0")}-1`;

/** Resolves with the first value of `look` that is not null or false; the bound is the test's own. */
export async function eventually<T>(look: () => Promise<T | null | false | undefined>, limitMs = 10_000): Promise<T> {
  const end = performance.now() + limitMs;
  for (;;) {
    const seen = await look();
    if (seen !== null && seen !== false && seen !== undefined) return seen;
    if (performance.now() > end) throw new Error(`condition not met within ${limitMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** What consumer-process.ts and its parent say to each other. */
export type FromConsumer =
  | { readonly type: "ready" }
  | { readonly type: "active"; readonly id: string; readonly data: unknown; readonly stalledCount: number }
  | { readonly type: "given-up"; readonly id: string; readonly data: unknown; readonly reason: string }
  | { readonly type: "refused"; readonly reason: string }
  | { readonly type: "ours"; readonly ours: boolean }
  | { readonly type: "signal"; readonly signal: unknown };
export type ToConsumer = "finish" | "release" | "stop" | "say whose";

/** No promise, only the end of hope: the tests that run side by side start a dozen of them at once. */
const START_MS = 60_000;

export interface ConsumerProcess {
  readonly process: ChildProcess;
  /** The next message of this type that has not been taken yet. */
  next<Kind extends FromConsumer["type"]>(type: Kind, limitMs?: number): Promise<Extract<FromConsumer, { type: Kind }>>;
  tell(message: ToConsumer): void;
  /** SIGKILL, and gone. */
  kill(): Promise<void>;
  exited(limitMs: number): Promise<number | null>;
}

export async function startConsumerProcess(address: QueueAddress): Promise<ConsumerProcess> {
  const child = fork(fileURLToPath(new URL("consumer-process.ts", import.meta.url)), {
    env: { ...process.env, QUEUE_ADDRESS: JSON.stringify(address) },
    execArgv: [],
    stdio: ["ignore", "inherit", "inherit", "ipc"],
  });
  const messages: FromConsumer[] = [];
  child.on("message", (message) => void messages.push(message as FromConsumer)); // our own process
  const gone = new Promise<void>((resolve) => child.once("exit", () => resolve()));

  const consumer: ConsumerProcess = {
    process: child,
    next: (type, limitMs = 15_000) =>
      eventually(async () => {
        const index = messages.findIndex((message) => message.type === type);
        if (index < 0) return null;
        const [message] = messages.splice(index, 1);
        return message as Extract<FromConsumer, { type: typeof type }>; // found by its type
      }, limitMs),
    tell: (message) => void child.send(message),
    async kill() {
      child.kill("SIGKILL");
      await gone;
    },
    exited: (limitMs) =>
      eventually(async () => (child.exitCode === null ? null : { code: child.exitCode }), limitMs).then(
        ({ code }) => code,
      ),
  };
  await consumer.next("ready", START_MS);
  return consumer;
}

/**
 * Takes the lock of an active job away from its holder, as an outage longer than the lock does, and waits until a
 * consumer has it again.
 */
export async function loseLock({ redis_url, database_url, queue }: QueueAddress, id: JobId): Promise<void> {
  if (redis_url !== undefined) {
    const redis = new Redis(redis_url);
    const key = `bull:${queue}:${id}:lock`;
    await redis.del(key);
    await eventually(async () => (await redis.exists(key)) === 1, 15_000);
    redis.disconnect();
    return;
  }
  const client = new Client({ connectionString: database_url });
  await client.connect();
  const job = [queue, id];
  await client.query(
    "UPDATE bullmq.job SET lock_token = 'lost', locked_until_ms = 0 WHERE queue = $1 AND id = $2",
    job,
  );
  const locked = "SELECT 1 FROM bullmq.job WHERE queue = $1 AND id = $2 AND state = 'active' AND lock_token <> 'lost'";
  await eventually(async () => (await client.query(locked, job)).rowCount === 1, 15_000);
  await client.end();
}

/** Ends every connection of this queue on the server's side, as a restart or a network fault would. */
export async function cutConnections({ redis_url, database_url }: QueueAddress): Promise<void> {
  if (redis_url !== undefined) {
    const redis = new Redis(redis_url);
    // Of this database only: other test files share the server.
    const list = String(await redis.client("LIST"));
    const database = ` db=${new URL(redis_url).pathname.slice(1)} `;
    for (const line of list.split("\n").filter((text) => text.includes(database))) {
      const id = /id=(\d+) /.exec(line)?.[1];
      if (id !== undefined && Number(id) !== (await redis.client("ID"))) await redis.client("KILL", "ID", id);
    }
    redis.disconnect();
    return;
  }
  const client = new Client({ connectionString: database_url });
  await client.connect();
  await client.query(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()`);
  await client.end();
}
