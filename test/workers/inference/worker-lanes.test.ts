/** What nobody waits for beside what somebody waits for, in one worker: two queues, one engine. On either backend. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";

import { freshRedisUrl } from "#test/support/redis.ts";

import { eventually } from "./support/eventually.ts";
import { CHUNK, POISON_ACTION } from "./support/tiny-bundle.ts";
import { createWorkersHere, type WorkersHere } from "./support/workers-here.ts";
import { createWorkplace, type Workplace } from "./support/workplace.ts";

/** Turns of the loop that make one forward last some milliseconds. */
const SLOW_ACTION = 4_000;
const LONG_CHUNKS = 40;
const STEPS = 2;

describe.each(["postgres", "redis"] as const)("with the queue on %s", (backend) => {
  let place: Workplace;
  let workers: WorkersHere;
  beforeAll(async () => {
    place = await createWorkplace(backend === "redis" ? { redisUrl: await freshRedisUrl() } : {});
    workers = createWorkersHere(place);
  });
  afterEach(() => workers.stop());
  afterAll(() => place.stop());

  const slow = { chunks: LONG_CHUNKS, actions: [SLOW_ACTION] };
  /** Not over before a test has had its look. */
  const endless = { chunks: 100, actions: [20 * SLOW_ACTION] };
  const bulk = { job: { lane: "bulk" } } as const;
  const submitBulk = (count: number) =>
    Promise.all(Array.from({ length: count }, () => place.submit({ ...slow, ...bulk })));

  test("a realtime rollout passes a worker full of bulk ones, which go on afterwards from where they were", async () => {
    const { engine } = await workers.start();
    // More than the engine holds, and more than the worker takes.
    const long = await submitBulk(8);
    await eventually(() => engine.stats.samples_admitted === 4);
    const { id } = await place.submit();
    expect(await place.outcomeOf(id)).toMatchObject({ kind: "succeeded" });
    expect(long.filter((job) => place.settled.has(job.id))).toEqual([]);

    for (const job of long) expect(await place.outcomeOf(job.id, 60_000)).toMatchObject({ kind: "succeeded" });
    expect(engine.stats.rows.denoiser_body).toBe((8 * LONG_CHUNKS + 2) * CHUNK * STEPS);
  });

  test("a bulk job that an older version left among the realtime ones is run", async () => {
    const { id, data } = await place.prepare(bulk);
    await place.predictions.add(id, data, { priority: 10 });
    await workers.start();
    expect(await place.outcomeOf(id)).toMatchObject({ kind: "succeeded" });
    await eventually(async () => (await place.predictions.find(id)) === null);
  });

  test("a job that stands in both queues runs twice, ends as one run says, and disturbs nobody", async () => {
    const { engine } = await workers.start();
    const { id, data } = await place.prepare({ ...slow, ...bulk });
    for (const queue of [place.predictions, place.bulkPredictions]) await queue.add(id, data);
    await eventually(() => engine.stats.samples_admitted === 2); // at the same time
    const neighbour = await place.submit();
    for (const job of [id, neighbour.id]) expect(await place.outcomeOf(job)).toMatchObject({ kind: "succeeded" });
    for (const queue of [place.predictions, place.bulkPredictions]) {
      await eventually(async () => (await queue.find(id)) === null);
    }
    expect(engine.stats.samples_finished).toBe(3); // the other run, too, and without a fault
  });

  test("after an engine fault the jobs of both lanes go back to their queues, to run alone, and one fails", async () => {
    const first = await workers.start();
    // Still there when the poison comes, however busy this machine is; and soon enough over once each runs alone.
    const long = { chunks: LONG_CHUNKS, actions: [4 * SLOW_ACTION] };
    const [neighbour, bulkNeighbour] = [await place.submit(long), await place.submit({ ...long, ...bulk })];
    await eventually(() => first.engine.stats.samples_admitted === 2);
    // Realtime, lest it wait where the realtime neighbour leaves bulk ones no room.
    const poison = await place.submit({ actions: [POISON_ACTION] });
    expect((await first.worker.failed).message).toContain("the engine failed");
    const retried = { state: "waiting", data: { alone: true } };
    expect(await place.predictions.find(neighbour.id)).toMatchObject(retried);
    expect(await place.bulkPredictions.find(bulkNeighbour.id)).toMatchObject(retried);
    expect(await place.predictions.find(poison.id)).toMatchObject(retried);
    await workers.stop();

    // The next process runs each of them alone, and dies of the poison only.
    const second = await workers.start();
    expect((await second.worker.failed).message).toContain("the engine failed");
    await workers.stop();
    await workers.start();
    expect(await place.outcomeOf(poison.id)).toMatchObject({ kind: "failed", code: "engine_failed" });
    for (const { id } of [neighbour, bulkNeighbour]) {
      expect(await place.outcomeOf(id, 60_000)).toMatchObject({ kind: "succeeded" });
    }
  });

  test("while a bulk job runs alone its worker takes nothing of either lane, and takes both again after it", async () => {
    const { engine } = await workers.start();
    const alone = await place.submit({ ...endless, job: { lane: "bulk", alone: true } });
    await place.progressOf(alone.data.rollout_id);
    const [one, other] = [await place.submit(), await place.submit(bulk)];
    await place.progressOf(alone.data.rollout_id);
    expect(place.settled.has(alone.id)).toBe(false);
    expect(engine.stats.samples_admitted).toBe(1);
    expect(await place.predictions.find(one.id)).toMatchObject({ state: "waiting" });
    expect(await place.bulkPredictions.find(other.id)).toMatchObject({ state: "waiting" });

    await place.queues.signals.publish({ kind: "cancel", rollout_id: alone.data.rollout_id });
    expect(await place.outcomeOf(alone.id)).toMatchObject({ kind: "cancelled" });
    for (const { id } of [one, other]) expect(await place.outcomeOf(id)).toMatchObject({ kind: "succeeded" });
  });

  test("a stopping worker puts back what it has in hand of either lane", async () => {
    const { engine, worker } = await workers.start();
    const [one, other] = [await place.submit(endless), await place.submit({ ...endless, ...bulk })];
    await eventually(() => engine.stats.samples_admitted === 2);
    await worker.stop(0);
    expect(await place.predictions.find(one.id)).toEqual({ state: "waiting", data: one.data });
    expect(await place.bulkPredictions.find(other.id)).toEqual({ state: "waiting", data: other.data });
    await Promise.all([place.predictions.remove(one.id), place.bulkPredictions.remove(other.id)]);
  });
});
