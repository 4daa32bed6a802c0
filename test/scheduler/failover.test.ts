/**
 * Two schedulers as processes, under the role of one, with the queue on Redis: one is killed, one is frozen and wakes up
 * again. The other leads within 5 s, and every rollout is dispatched once.
 */
import { setTimeout as delay } from "node:timers/promises";

import { afterAll, beforeAll, expect, test } from "vitest";

import { jobIdOf, type RolloutId } from "#contract/ids.ts";
import type { CreatedKey } from "#keys/keys.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { openQueues } from "#queue/open-queues.ts";
import { predictQueue } from "#queue/queues.ts";

import { start as startCommand, type Started } from "../cli/command.ts";
import { eventually } from "../queue/test-queue.ts";
import { accept, newCustomer } from "../support/ledger.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "../support/postgres.ts";
import { freshRedisUrl } from "../support/redis.ts";

const REPLACED_WITHIN_MS = 5_000;
const START_WITHIN_MS = 60_000;
const MODEL = "pusht-small";

let database: TestDatabase;
let queues: QueueSystem;
let key: CreatedKey;
let redisUrl: string;
const schedulers: Started[] = [];

beforeAll(async () => {
  database = await createTestDatabase();
  redisUrl = await freshRedisUrl();
  queues = await openQueues({ redis_url: redisUrl, database_url: database.url, migrate: false, log: silentLog });
  key = await newCustomer(database.db);
});
afterAll(async () => {
  for (const { child } of schedulers) child.kill("SIGKILL");
  await queues?.stop();
  await database?.drop();
});

async function startScheduler(): Promise<Started> {
  const scheduler = startCommand(["scheduler"], {
    DATABASE_URL: database.urlAs("scheduler"),
    REDIS_URL: redisUrl,
    LOG_LEVEL: "info",
  });
  schedulers.push(scheduler);
  await expect.poll(() => scheduler.stderr(), { timeout: START_WITHIN_MS, interval: 50 }).toContain(`"msg":"running"`);
  return scheduler;
}

const says = ({ stderr }: Started, message: string): number => stderr().split(`"msg":"${message}"`).length - 1;

const term = async (): Promise<{ epoch: bigint; pid: number }> => {
  const [row] = await database.db.query<{ epoch: bigint; holder: string }>(
    "SELECT epoch, holder FROM scheduler_leader",
  );
  if (!row) throw new Error("scheduler_leader is empty");
  return { epoch: row.epoch, pid: Number(row.holder.split(" ").at(-1)) };
};

const leads = async ({ child }: Started): Promise<boolean> => (await term()).pid === child.pid;

async function untilDispatched(id: RolloutId): Promise<void> {
  await eventually(async () => {
    const [row] = await database.db.query<{ status: string }>("SELECT status FROM rollouts WHERE id = $1", [id]);
    return row?.status === "dispatched";
  });
}

/** Milliseconds from `fault` until the other one leads. */
async function replacement(fault: () => void, by: Started): Promise<number> {
  const startedAt = performance.now();
  fault();
  await eventually(() => leads(by), 2 * REPLACED_WITHIN_MS);
  return performance.now() - startedAt;
}

test("the standby leads within 5 s of a freeze and of a SIGKILL, and nothing is dispatched twice", async () => {
  const { db } = database;
  const [first, second] = await Promise.all([startScheduler(), startScheduler()]);
  await eventually(async () => (await leads(first)) || (await leads(second)));
  const [leader, standby] = (await leads(first)) ? [first, second] : [second, first];
  const { epoch } = await term();
  const rollouts: RolloutId[] = [];
  const queueOne = async (): Promise<RolloutId> => {
    const { id } = await accept(db, key);
    rollouts.push(id);
    await queues.signals.publish({ kind: "queued" });
    return id;
  };
  await untilDispatched(await queueOne());

  expect(await replacement(() => leader.child.kill("SIGSTOP"), standby)).toBeLessThan(REPLACED_WITHIN_MS);
  expect(await term()).toMatchObject({ epoch: epoch + 1n });
  await untilDispatched(await queueOne());

  // What reached the frozen one meanwhile it hears now, and may do nothing about.
  leader.child.kill("SIGCONT");
  await untilDispatched(await queueOne());
  await eventually(async () => says(leader, "lost the leadership") === 1);
  await delay(1_500); // two rounds of a standby
  expect(await leads(standby)).toBe(true);
  expect(says(leader, "leading")).toBe(1);

  expect(await replacement(() => standby.child.kill("SIGKILL"), leader)).toBeLessThan(REPLACED_WITHIN_MS);
  expect(await term()).toMatchObject({ epoch: epoch + 2n });
  await untilDispatched(await queueOne());

  const attempts = await db.query<{ attempt: number }>("SELECT attempt FROM rollouts");
  expect(attempts).toEqual(rollouts.map(() => ({ attempt: 1 })));
  const queue = predictQueue(queues, MODEL, "realtime");
  await eventually(async () => (await queue.counts()).waiting === rollouts.length);
  for (const id of rollouts) expect(await queue.find(jobIdOf(id, 1))).toMatchObject({ state: "waiting" });
});
