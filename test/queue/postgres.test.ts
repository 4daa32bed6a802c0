/** What only the PostgreSQL backend promises: a worker's role that sees the queue and nothing else. */
import { Client } from "pg";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

import type { Signal } from "#queue/signals.ts";
import { createPostgresQueues, grantQueue } from "#queue/postgres.ts";

import { createTestDatabase, silentLog, type TestDatabase } from "../support/postgres.ts";
import { eventually, newJobId, openTestQueue } from "./test-queue.ts";

describe("a role that was granted the queue alone", () => {
  let database: TestDatabase;
  let url: string;
  const role = `worker_${process.pid}_${Date.now()}`;

  beforeAll(async () => {
    database = await createTestDatabase();
    const owner = await createPostgresQueues({ url: database.url, log: silentLog, migrate: true });
    await owner.stop();
    await database.db.query(`CREATE ROLE ${role} LOGIN PASSWORD 'secret'`);
    await grantQueue(database.db, role);
    await grantQueue(database.db, role); // idempotent
    const asWorker = new URL(database.url);
    asWorker.username = role;
    asWorker.password = "secret";
    url = asWorker.href;
  });
  afterAll(async () => {
    await database.db.query(`DROP OWNED BY ${role}`);
    await database.db.query(`DROP ROLE ${role}`);
    await database.drop();
  });

  test("adds, consumes, fails, releases, counts and signals", async () => {
    const { queues, queue } = await openTestQueue(
      { redis_url: undefined, database_url: url, queue: "predict.restricted" },
      silentLog,
    );
    const heard: Signal[] = [];
    await queues.signals.subscribe(["finished"], (signal) => heard.push(signal));
    const seen: number[] = [];
    await queue.consume({
      concurrency: 2,
      async handle(job) {
        seen.push(job.data.n);
        if (job.data.n === 1) await job.release({ n: 2 });
        if (job.data.n === 3) throw new Error("boom");
      },
    });
    await queue.add(newJobId(), { n: 1 }, { priority: 1 });
    await queue.add(newJobId(), { n: 3 });
    await eventually(async () => seen.length === 3 && (await queue.counts()).failed === 1);
    await queues.signals.publish({ kind: "finished", rollout_id: "rollout_1" });
    await eventually(async () => heard.length === 1);
    expect(new Set(seen)).toEqual(new Set([1, 2, 3]));
    await queues.stop();
  });

  test("cannot read the ledger, keys or rollouts, nor change the queue's schema", async () => {
    const client = new Client({ connectionString: url });
    await client.connect();
    for (const statement of [
      "SELECT * FROM public.accounts",
      "SELECT * FROM public.ledger_entries",
      "SELECT * FROM public.api_keys",
      "SELECT * FROM public.rollouts",
      "SELECT * FROM public.shared_secrets",
      "CREATE TABLE public.mine (x int)",
      "DROP TABLE bullmq.job",
      "ALTER TABLE bullmq.job ADD COLUMN x int",
    ]) {
      await expect(client.query(statement)).rejects.toThrow(/permission denied|must be owner/);
    }
    await client.end();
  });
});

test("several processes may migrate at the same time, and again", async () => {
  const database = await createTestDatabase();
  const open = () => createPostgresQueues({ url: database.url, log: silentLog, migrate: true });
  const systems = await Promise.all([open(), open(), open()]);
  await Promise.all(systems.map((queues) => queues.stop()));
  await (await open()).stop();
  const versions = await database.db.query<{ version: number }>("SELECT version FROM bullmq.migration");
  expect(new Set(versions.map(({ version }) => version)).size).toBe(versions.length);
  await database.drop();
});

test("a database without the queue's schema is refused with a message that says what to do", async () => {
  const database = await createTestDatabase();
  const opening = createPostgresQueues({ url: database.url, log: silentLog, migrate: false });
  await expect(opening).rejects.toThrow(
    /there is no queue in that database yet; its owner makes it with `dream-engine database migrate`/,
  );
  await database.drop();
});

test("a server that is not there is reported, not waited for", async () => {
  const url = "postgres://nobody@127.0.0.1:1/none";
  await expect(createPostgresQueues({ url, log: silentLog, migrate: false })).rejects.toThrow("ECONNREFUSED");
});
