/**
 * The other end of plain-bullmq.ts: a BullMQ worker with a handler that does nothing, in a process of its own. Told to
 * expect a number of jobs, it says so when it has processed them.
 */
import { createPostgresBackend, createRedisBackend, type PgPool, Worker } from "bullmq";
import { Redis } from "ioredis";
import { Pool } from "pg";

import { PLAIN_CONCURRENCY, PLAIN_QUEUE, plainPoolOptions } from "./plain-bullmq.ts";

let processed = 0;
let expected = Number.POSITIVE_INFINITY;

function answerWhenDone(): void {
  if (processed < expected) return;
  processed -= expected;
  expected = Number.POSITIVE_INFINITY;
  process.send?.("processed");
}

async function handle(): Promise<void> {
  processed += 1;
  answerWhenDone();
}

process.on("message", (count) => {
  expected = Number(count);
  answerWhenDone();
});

const [redisUrl, postgresUrl] = [process.env["REDIS_URL"], process.env["DATABASE_URL"]];
const worker =
  redisUrl === undefined
    ? new Worker(
        PLAIN_QUEUE,
        handle,
        { connection: new Pool(plainPoolOptions(postgresUrl ?? "")) as PgPool, concurrency: PLAIN_CONCURRENCY },
        createPostgresBackend,
      )
    : new Worker(
        PLAIN_QUEUE,
        handle,
        { connection: new Redis(redisUrl, { maxRetriesPerRequest: null }), concurrency: PLAIN_CONCURRENCY },
        createRedisBackend,
      );
worker.on("error", (error) => console.error(error));
await worker.waitUntilReady();
process.send?.("ready");
