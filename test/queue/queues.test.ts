/** The two queues of a model: apart for workers, one for whoever looks, takes back or counts. On either backend. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";

import type { PredictJob } from "#contract/jobs.ts";
import type { Lane } from "#contract/rollout.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { openQueues } from "#queue/open-queues.ts";
import { predictJobs, predictQueue } from "#queue/queues.ts";

import { createTestDatabase, silentLog, type TestDatabase } from "../support/postgres.ts";
import { freshRedisUrl } from "../support/redis.ts";
import { eventually, newJobId } from "./test-queue.ts";

const LANES = ["realtime", "bulk"] as const;

const jobOf = (model: string, lane: Lane): PredictJob => ({
  rollout_id: `rollout_${"0".repeat(32)}`,
  attempt: 1,
  model,
  lane,
  frame_key: "frame",
  actions_key: "actions",
  k: 1,
  actions_per_candidate: 12,
  params: { seed: "1", num_steps: 2, guidance: 0, prompt: "" },
  debited_mils: "65",
  deadline_ms: 0,
  alone: false,
});

describe.each(["postgres", "redis"] as const)("on %s", (backend) => {
  let database: TestDatabase;
  let queues: QueueSystem;
  beforeAll(async () => {
    database = await createTestDatabase();
    const redis_url = backend === "redis" ? await freshRedisUrl() : undefined;
    queues = await openQueues({ redis_url, database_url: database.url, migrate: true, log: silentLog });
  });
  afterAll(async () => {
    await queues.stop();
    await database.drop();
  });

  test("a job is found and taken back in its lane, and both lanes count", async () => {
    const model = "both";
    const jobs = predictJobs(queues, model);
    const ids = { realtime: newJobId(), bulk: newJobId() };
    for (const lane of LANES) await predictQueue(queues, model, lane).add(ids[lane], jobOf(model, lane));
    expect(await jobs.counts()).toEqual({ waiting: 2, active: 0, failed: 0 });
    for (const lane of LANES) {
      expect(await jobs.find(ids[lane], lane)).toMatchObject({ state: "waiting", data: { lane } });
      expect(await jobs.remove(ids[lane], lane)).toBe(true);
      expect(await jobs.find(ids[lane], lane)).toBeNull();
      expect(await jobs.remove(ids[lane], lane)).toBe(false);
    }
    expect(await jobs.counts()).toEqual({ waiting: 0, active: 0, failed: 0 });
  });

  test("whoever takes realtime jobs is given no bulk ones, however many wait, nor the other way round", async () => {
    const model = "apart";
    const ids = { realtime: newJobId(), bulk: newJobId() };
    for (const lane of LANES) await predictQueue(queues, model, lane).add(ids[lane], jobOf(model, lane));
    const jobs = predictJobs(queues, model);
    for (const lane of LANES) {
      const taken: Lane[] = [];
      const letGo = Promise.withResolvers<void>();
      const consumer = await predictQueue(queues, model, lane).consume({
        concurrency: 8,
        async handle({ data }) {
          taken.push(data.lane);
          await letGo.promise;
        },
      });
      await eventually(async () => taken.length > 0);
      expect(await jobs.find(ids[lane], lane)).toMatchObject({ state: "active" });
      expect((await jobs.counts()).active).toBe(1);
      letGo.resolve();
      await consumer.stop();
      expect(taken).toEqual([lane]);
    }
    expect(await jobs.counts()).toEqual({ waiting: 0, active: 0, failed: 0 });
  });

  test("a bulk job that an older version left among the realtime ones is found and taken back there", async () => {
    const model = "upgraded";
    const [old, next] = [newJobId(), newJobId()];
    const realtime = predictQueue(queues, model, "realtime");
    await realtime.add(old, jobOf(model, "bulk"), { priority: 10 });
    await realtime.add(next, jobOf(model, "realtime"));
    const jobs = predictJobs(queues, model);
    expect(await jobs.find(old, "bulk")).toMatchObject({ state: "waiting", data: { lane: "bulk" } });
    expect(await jobs.counts()).toMatchObject({ waiting: 2 });

    // It still goes after what somebody waits for.
    const taken: Lane[] = [];
    const consumer = await realtime.consume({ concurrency: 1, handle: async ({ data }) => void taken.push(data.lane) });
    await eventually(async () => taken.length === 2);
    await consumer.stop();
    expect(taken).toEqual(["realtime", "bulk"]);

    await realtime.add(old, jobOf(model, "bulk"), { priority: 10 });
    expect(await jobs.remove(old, "bulk")).toBe(true);
    expect(await jobs.find(old, "bulk")).toBeNull();
  });
});
