import { afterAll, beforeAll, expect, test } from "vitest";

import { jobIdOf } from "#contract/ids.ts";
import type { Lane } from "#contract/rollout.ts";
import type { Database } from "#platform/database.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { createPostgresQueues } from "#queue/postgres.ts";
import { predictQueue } from "#queue/queues.ts";
import type { Signal } from "#queue/signals.ts";
import { predictJobOf } from "#rollouts/dispatch.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import { withdraw } from "#rollouts/withdraw.ts";
import { accept, dispatch, newCustomer } from "#test/support/ledger.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
let queues: QueueSystem;
const signals: Signal[] = [];

beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
  queues = await createPostgresQueues({ url: database.url, log: silentLog, migrate: true });
  await queues.signals.subscribe(["cancel"], (signal) => void signals.push(signal));
});
afterAll(async () => {
  await queues.stop();
  await database.drop();
});

/** In its first attempt, its job in the queue. */
async function waiting(lane: Lane = "realtime"): Promise<Rollout> {
  const { id } = await accept(db, await newCustomer(db), { lane });
  await dispatch(db, id);
  const [rollout] = await db.query<Rollout>("SELECT * FROM rollouts WHERE id = $1", [id]);
  if (!rollout) throw new Error(`no rollout ${id}`);
  await predictQueue(queues, rollout.model, lane).add(jobIdOf(id, 1), predictJobOf(rollout));
  return rollout;
}
const cancelOf = ({ id }: Rollout): Signal => ({ kind: "cancel", rollout_id: id });

test.each(["realtime", "bulk"] as const)(
  "a waiting %s job is taken out of the queue, and another's stays",
  async (lane) => {
    const [ended, other] = [await waiting(lane), await waiting(lane)];
    await withdraw({ queues, log: silentLog }, ended);
    const queue = predictQueue(queues, ended.model, lane);
    expect(await queue.find(jobIdOf(ended.id, 1))).toBeNull();
    expect(await queue.find(jobIdOf(other.id, 1))).toMatchObject({ state: "waiting" });
    await expect.poll(() => signals).toContainEqual(cancelOf(ended));
  },
);

test("a queue that does not answer is no obstacle: whoever runs the job is still told", async () => {
  const ended = await waiting();
  const deaf: QueueSystem = {
    ...queues,
    open: (name, parse) => ({ ...queues.open(name, parse), remove: () => Promise.reject(new Error("away")) }),
  };
  await withdraw({ queues: deaf, log: silentLog }, ended);
  await expect.poll(() => signals).toContainEqual(cancelOf(ended));
});
