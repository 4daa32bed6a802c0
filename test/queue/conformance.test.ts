/** What every backend of the queue must do. The same tests on PostgreSQL and on Redis. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";

import type { JobId } from "#contract/ids.ts";
import type { ActiveJob, Consumer, JobQueue, QueueSystem } from "#queue/job-queue.ts";
import { openQueues } from "#queue/open-queues.ts";
import type { Signal } from "#queue/signals.ts";

import { createTestDatabase, silentLog, type TestDatabase } from "../support/postgres.ts";
import { freshRedisUrl } from "../support/redis.ts";
import {
  type ConsumerProcess,
  cutConnections,
  eventually,
  newJobId,
  openTestQueue,
  type QueueAddress,
  startConsumerProcess,
  type TestJob,
} from "./test-queue.ts";

/** Lock 5 s, then up to two stalled checks 2 s apart, and a busy machine. */
const RECOVERY_MS = 15_000;

describe.each(["postgres", "redis"] as const)("queue on %s", (backend) => {
  let database: TestDatabase;
  let address: QueueAddress;
  let queues: QueueSystem;
  let queue: JobQueue<TestJob>;
  let names = 0;
  const consumers: Consumer[] = [];
  const processes: ConsumerProcess[] = [];

  beforeAll(async () => {
    database = await createTestDatabase();
    const redis_url = backend === "redis" ? await freshRedisUrl() : undefined;
    address = { redis_url, database_url: database.url, queue: "" };
    const migrated = await openQueues({ ...address, migrate: true, log: silentLog });
    await migrated.stop();
  });
  afterAll(() => database.drop());

  beforeEach(async () => {
    address = { ...address, queue: `predict.test-${(names += 1)}` };
    ({ queues, queue } = await openTestQueue(address, silentLog));
  });
  afterEach(async () => {
    await Promise.all(processes.splice(0).map((process) => process.kill()));
    await Promise.all(consumers.splice(0).map((consumer) => consumer.stop(0)));
    await queues.stop();
  });

  async function consume(
    handle: (job: ActiveJob<TestJob>) => Promise<void>,
    onGivenUp?: (id: JobId, data: TestJob | null, reason: string) => Promise<void>,
    concurrency = 1,
  ): Promise<Consumer> {
    const consumer = await queue.consume({ concurrency, handle, ...(onGivenUp && { onGivenUp }) });
    consumers.push(consumer);
    return consumer;
  }
  async function consumeElsewhere(): Promise<ConsumerProcess> {
    const consumer = await startConsumerProcess(address);
    processes.push(consumer);
    return consumer;
  }
  const gone = (id: JobId): Promise<true> => eventually(async () => (await queue.find(id)) === null);
  const inState = (id: JobId, state: string): Promise<true> =>
    eventually(async () => (await queue.find(id))?.state === state);

  test("runs an added job with its data, then forgets it", async () => {
    const seen: unknown[] = [];
    await consume(async ({ id, data, stalledCount }) => void seen.push({ id, data, stalledCount }));
    const id = newJobId();
    await queue.add(id, { n: 7 });
    await gone(id);
    expect(seen).toEqual([{ id, data: { n: 7 }, stalledCount: 0 }]);
  });

  test("knows nothing of a job that was never added", async () => {
    expect(await queue.find(newJobId())).toBeNull();
    expect(await queue.remove(newJobId())).toBe(false);
  });

  test("runs lower priorities first, and equal ones in the order they came", async () => {
    const order: number[] = [];
    for (const [n, priority] of [
      [1, 10],
      [2, 10],
      [3, 1],
      [4, 1],
      [5, 0],
    ] as const) {
      await queue.add(newJobId(), { n }, { priority });
    }
    expect(await queue.counts()).toEqual({ waiting: 5, active: 0, failed: 0 });
    await consume(async ({ data }) => void order.push(data.n));
    await eventually(async () => order.length === 5);
    expect(order).toEqual([5, 3, 4, 1, 2]);
  });

  test("adding an id twice leaves the first job as it is, waiting, active or failed", async () => {
    const id = newJobId();
    await queue.add(id, { n: 1 });
    await queue.add(id, { n: 2 });
    expect(await queue.find(id)).toEqual({ state: "waiting", data: { n: 1 } });

    const held = Promise.withResolvers<void>();
    let runs = 0;
    await consume(async ({ data }) => {
      runs += 1;
      expect(data).toEqual({ n: 1 });
      await held.promise;
      throw new Error("boom");
    });
    await inState(id, "active");
    await queue.add(id, { n: 3 });
    expect(await queue.find(id)).toEqual({ state: "active", data: { n: 1 } });
    held.resolve();
    await inState(id, "failed");
    await queue.add(id, { n: 4 });

    const after = newJobId();
    await queue.add(after, { n: 1 });
    await inState(after, "failed"); // so everything before it has been looked at
    expect(await queue.find(id)).toEqual({ state: "failed", data: { n: 1 } });
    expect(runs).toBe(2);
  });

  test("a job whose handler throws is failed, kept, counted and never retried", async () => {
    let runs = 0;
    await consume(async () => {
      runs += 1;
      throw new Error("boom");
    });
    const id = newJobId();
    await queue.add(id, { n: 1 }, { priority: 1 });
    await inState(id, "failed");
    expect(await queue.counts()).toEqual({ waiting: 0, active: 0, failed: 1 });
    expect(runs).toBe(1);
    expect(await queue.remove(id)).toBe(true);
    expect(await queue.find(id)).toBeNull();
  });

  test("counts what waits, runs and failed", async () => {
    const { handle, letGo, started } = holding();
    await consume(handle, undefined, 2);
    for (let n = 0; n < 5; n += 1) await queue.add(newJobId(), { n }, { priority: n });
    await started(2);
    expect(await queue.counts()).toEqual({ waiting: 3, active: 2, failed: 0 });
    letGo();
    await eventually(async () => (await queue.counts()).waiting === 0);
  });

  test("invalid data never reaches the handler: failed at once and reported", async () => {
    const wrong = queues.open(address.queue, (value) => value as { text: string });
    const reports: unknown[] = [];
    let handled = 0;
    await consume(
      async () => void (handled += 1),
      async (id, data, reason) => void reports.push({ id, data, reason }),
    );
    const id = newJobId();
    await wrong.add(id, { text: "not a number" });
    await inState(id, "failed");
    expect(reports).toEqual([{ id, data: null, reason: expect.stringContaining("invalid job data") }]);
    expect(await queue.find(id)).toEqual({ state: "failed", data: null });
    expect(handled).toBe(0);
  });

  test("a waiting job can be removed, an active one cannot", async () => {
    const { handle, letGo, started, seen } = holding();
    await consume(handle);
    const active = newJobId();
    await queue.add(active, { n: 1 });
    await started();
    const waiting = newJobId();
    await queue.add(waiting, { n: 2 }, { priority: 3 });
    expect(await queue.remove(waiting)).toBe(true);
    expect(await queue.find(waiting)).toBeNull();
    expect(await queue.remove(active)).toBe(false);
    letGo();
    await gone(active);
    expect(seen.map((job) => job.id)).toEqual([active]);
  });

  test("two consumers never run the same live job at once, and every job runs", async () => {
    const running = new Set<string>();
    const runs = new Map<string, number>();
    const handle = async ({ id }: ActiveJob<TestJob>): Promise<void> => {
      expect(running.has(id)).toBe(false);
      running.add(id);
      runs.set(id, (runs.get(id) ?? 0) + 1);
      await new Promise((resolve) => setImmediate(resolve));
      running.delete(id);
    };
    await consume(handle, undefined, 4);
    await consume(handle, undefined, 4);
    const ids = Array.from({ length: 60 }, newJobId);
    await Promise.all(ids.map((id, n) => queue.add(id, { n }, { priority: 1 + (n % 2) })));
    await eventually(async () => runs.size === ids.length);
    expect([...runs.values()].every((count) => count === 1)).toBe(true);
  });

  test("a lock is renewed for as long as the job runs", { timeout: 40_000 }, async () => {
    let runs = 0;
    const handle = async (): Promise<void> => {
      runs += 1;
      await new Promise((resolve) => setTimeout(resolve, 8_000)); // the thing under test is time: longer than the lock
    };
    await consume(handle);
    await consume(handle);
    const id = newJobId();
    await queue.add(id, { n: 1 });
    await eventually(async () => (await queue.find(id)) === null, 20_000);
    expect(runs).toBe(1);
  });

  test("a released job is taken at once by a consumer that waits, with its new data", async () => {
    const first = await consume(async (job) => {
      await first.pause();
      await elsewhere.promise;
      await job.release({ n: 2 });
      releasedAt = performance.now();
    });
    let releasedAt = 0;
    const elsewhere = Promise.withResolvers<void>();
    const id = newJobId();
    await queue.add(id, { n: 1 }, { priority: 5 });
    await inState(id, "active");

    const { handle, letGo, seen, started } = holding();
    await consume(handle);
    const other = newJobId();
    await queue.add(other, { n: 0 });
    await started(); // it takes jobs
    letGo();
    await gone(other);
    elsewhere.resolve();
    await started(2);
    expect(performance.now() - releasedAt).toBeLessThan(2_000);
    expect(seen[1]).toMatchObject({ id, data: { n: 2 }, stalledCount: 0 });
    await gone(id);
  });

  test("a released job may come back to the same consumer", async () => {
    const seen: number[] = [];
    await consume(async (job) => {
      seen.push(job.data.n);
      if (job.data.n === 1) await job.release({ n: 2 });
    });
    const id = newJobId();
    await queue.add(id, { n: 1 }, { priority: 1 });
    await gone(id);
    expect(seen).toEqual([1, 2]);
  });

  test("a worker that froze while its job went elsewhere cannot touch it any more", async () => {
    const frozen = await consumeElsewhere();
    const id = newJobId();
    await queue.add(id, { n: 1 });
    await frozen.next("active");
    frozen.process.kill("SIGSTOP");
    const { handle, letGo, seen, started } = holding();
    const heir = await consume(handle);
    await eventually(async () => seen.length > 0, RECOVERY_MS);
    expect(seen[0]).toMatchObject({ id, stalledCount: 1 });

    frozen.process.kill("SIGCONT");
    frozen.tell("release");
    expect(await frozen.next("refused")).toMatchObject({ reason: expect.stringContaining("no longer ours") });
    expect(await queue.find(id)).toEqual({ state: "active", data: { n: 1 } });
    letGo();
    await started();
    await gone(id);
    await heir.stop();
  });

  test("a paused consumer takes nothing until it resumes", async () => {
    const { handle, letGo, seen } = holding();
    letGo();
    const consumer = await consume(handle);
    await consumer.pause();
    const id = newJobId();
    await queue.add(id, { n: 1 });
    const elsewhere = await consumeElsewhere();
    expect(await elsewhere.next("active")).toMatchObject({ id, stalledCount: 0 });
    await elsewhere.kill();
    expect(seen).toEqual([]);
    await consumer.resume();
    await queue.add(newJobId(), { n: 2 });
    await eventually(async () => seen.length > 0);
  });

  test("stop waits for the job in hand and takes no more", async () => {
    const { handle, letGo, seen, started } = holding();
    const consumer = await consume(handle);
    const [first, second] = [newJobId(), newJobId()];
    await queue.add(first, { n: 1 });
    await started();
    await queue.add(second, { n: 2 });
    let stopped = false;
    const stopping = consumer.stop().then(() => (stopped = true));
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(stopped).toBe(false);
    letGo();
    await stopping;
    expect(seen.map(({ id }) => id)).toEqual([first]);
    expect(await queue.find(first)).toBeNull();
    expect((await queue.find(second))?.state).toBe("waiting");
    await consumer.stop(); // idempotent
  });

  test("stop is bounded when a handler hangs; the job then runs elsewhere", { timeout: 40_000 }, async () => {
    const { handle, seen, started } = holding();
    const consumer = await consume(handle);
    const id = newJobId();
    await queue.add(id, { n: 1 });
    await started();
    const before = performance.now();
    await consumer.stop(300);
    expect(performance.now() - before).toBeLessThan(3_000);
    await expect(seen[0]?.release({ n: 2 })).rejects.toThrow("no longer ours");
    const elsewhere = await consumeElsewhere();
    expect(await elsewhere.next("active", RECOVERY_MS)).toMatchObject({ id, stalledCount: 1 });
  });

  test("a job survives the SIGKILL of its worker once, then is given up", { timeout: 80_000 }, async () => {
    const id = newJobId();
    const [first, second] = [await consumeElsewhere(), await consumeElsewhere()];
    await queue.add(id, { n: 1 }, { priority: 1 });
    const [holder, heir] = await eventually(async () => {
      for (const [one, other] of [
        [first, second],
        [second, first],
      ] as const) {
        if (await one.next("active", 0).catch(() => null)) return [one, other] as const;
      }
      return null;
    });
    await holder.kill();
    expect(await heir.next("active", RECOVERY_MS)).toMatchObject({ id, data: { n: 1 }, stalledCount: 1 });

    const witness = await consumeElsewhere();
    await heir.kill();
    const report = await witness.next("given-up", RECOVERY_MS);
    expect(report).toMatchObject({ id, data: { n: 1 }, reason: "its worker died 2 times" });
    await inState(id, "failed");
    await queue.add(id, { n: 2 });
    expect(await queue.find(id)).toEqual({ state: "failed", data: { n: 1 } });
  });

  test("a given-up job that was not reported is reported by the next consumer", { timeout: 60_000 }, async () => {
    const id = newJobId();
    const hang = await consume(
      async () => undefined,
      () => new Promise(() => undefined),
    );
    const wrong = queues.open(address.queue, (value) => value as { text: string });
    await wrong.add(id, { text: "invalid" });
    await inState(id, "active");
    await hang.stop(0);
    const witness = await consumeElsewhere();
    expect(await witness.next("given-up", RECOVERY_MS)).toMatchObject({ id, data: null });
  });

  test("signals reach every subscriber of their kind, in other processes too", async () => {
    const elsewhere = await consumeElsewhere();
    const heard: Signal[] = [];
    const end = await queues.signals.subscribe(["finished", "progress"], (signal) => heard.push(signal));
    const cancel = { kind: "cancel", rollout_id: "rollout_1" } as const;
    await queues.signals.publish(cancel);
    expect(await elsewhere.next("signal")).toEqual({ type: "signal", signal: cancel });

    const sent: Signal[] = [
      { kind: "progress", rollout_id: "rollout_1", frames: 12 },
      { kind: "finished", rollout_id: "rollout_1" },
    ];
    for (const signal of sent) await queues.signals.publish(signal);
    await eventually(async () => heard.length === 2);
    expect(heard).toEqual(expect.arrayContaining(sent));

    await end();
    await queues.signals.publish({ kind: "finished", rollout_id: "rollout_2" });
    await queues.signals.publish(cancel);
    await elsewhere.next("signal"); // sent after it, and heard
    expect(heard).toHaveLength(2);
  });

  test("jobs and signals flow again after every connection was cut", async () => {
    const { handle, letGo, seen, started } = holding();
    letGo();
    await consume(handle);
    const heard: Signal[] = [];
    await queues.signals.subscribe(["finished"], (signal) => heard.push(signal));
    await queue.add(newJobId(), { n: 1 });
    await started();

    await cutConnections(address);
    const id = newJobId();
    await eventually(() =>
      queue.add(id, { n: 2 }).then(
        () => true,
        () => false,
      ),
    );
    await eventually(async () => seen.some((job) => job.id === id));
    await eventually(async () => {
      await queues.signals.publish({ kind: "finished", rollout_id: id });
      return heard.length > 0;
    });
    expect(heard[0]).toEqual({ kind: "finished", rollout_id: id });
  });

  test("a stopped process ends by itself", async () => {
    const elsewhere = await consumeElsewhere();
    elsewhere.tell("stop");
    expect(await elsewhere.exited(8_000)).toBe(0);
  });

  test("stopping twice is fine, and nothing can be opened afterwards", async () => {
    await Promise.all([queues.stop(), queues.stop()]);
    expect(() => queues.open("late", () => null)).toThrow("after the queues were stopped");
  });
});

/** A handler that holds its jobs until they are let go. */
function holding() {
  const seen: ActiveJob<TestJob>[] = [];
  const { promise, resolve: letGo } = Promise.withResolvers<void>();
  const handle = async (job: ActiveJob<TestJob>): Promise<void> => {
    seen.push(job);
    await promise;
  };
  return { seen, letGo, handle, started: (count = 1) => eventually(async () => seen.length >= count) };
}
