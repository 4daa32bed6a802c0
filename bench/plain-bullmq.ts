/** The baseline: BullMQ without anything of ours. A producer here adds jobs, a worker in another process does nothing with them. */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";

import { createPostgresBackend, createRedisBackend, type PgPool, Queue } from "bullmq";
import { Redis } from "ioredis";
import { Pool, type PoolConfig } from "pg";

export const PLAIN_QUEUE = "plain";
/** As many as the workers of the system under test take at once. */
export const PLAIN_CONCURRENCY = 8;
/** As a predict job, in size. */
const PAYLOAD = { text: "x".repeat(500) };

/** As our queue's own connections are (src/queue/postgres.ts), so that what is compared is what is around it. */
export const plainPoolOptions = (url: string): PoolConfig => ({
  connectionString: url,
  max: 10,
  keepAlive: true,
  options: "-c search_path=bullmq -c synchronous_commit=off",
  application_name: "plain bullmq",
});

export interface PlainBullmq {
  readonly worker: ChildProcess;
  /** Jobs a second from the first add until the worker has processed the last one. */
  run(count: number, callers: number): Promise<number>;
  stop(): Promise<void>;
}

/** `redisUrl` null: in the PostgreSQL of `databaseUrl`, whose schema bullmq is there. */
export async function startPlainBullmq(databaseUrl: string, redisUrl: string | null): Promise<PlainBullmq> {
  const pool = redisUrl === null ? new Pool(plainPoolOptions(databaseUrl)) : null;
  const redis = redisUrl === null ? null : new Redis(redisUrl, { maxRetriesPerRequest: null });
  const options = { defaultJobOptions: { removeOnComplete: true } };
  const queue = pool
    ? new Queue(PLAIN_QUEUE, { ...options, connection: pool as PgPool }, createPostgresBackend)
    : new Queue(PLAIN_QUEUE, { ...options, connection: redis ?? new Redis() }, createRedisBackend);
  await queue.waitUntilReady();
  const worker = fork(fileURLToPath(new URL("plain-bullmq-worker.ts", import.meta.url)), {
    env: {
      PATH: process.env["PATH"],
      DATABASE_URL: databaseUrl,
      ...(redisUrl === null ? {} : { REDIS_URL: redisUrl }),
    },
  });
  await once(worker, "message");
  let added = 0;
  return {
    worker,
    async run(count, callers) {
      const startedAt = performance.now();
      const processed = once(worker, "message");
      worker.send(count);
      const until = added + count;
      await Promise.all(
        Array.from({ length: callers }, async () => {
          while (added < until) await queue.add("job", PAYLOAD, { jobId: `job-${added++}` });
        }),
      );
      await processed;
      return (count / (performance.now() - startedAt)) * 1000;
    },
    async stop() {
      const exited = once(worker, "exit");
      worker.kill("SIGKILL");
      await exited;
      await queue.close();
      await pool?.end();
      redis?.disconnect();
    },
  };
}
