/** What every backend of the queue must do. The same tests on PostgreSQL and on Redis. */
import { afterAll, beforeAll, describe, expect, test as baseTest } from "vitest";

import type { JobId } from "#contract/ids.ts";
import type { ActiveJob, Consumer, JobQueue, JobState, QueueSystem } from "#queue/job-queue.ts";
import { openQueues, openSignals } from "#queue/open-queues.ts";
import type { Signal } from "#queue/signals.ts";

import { createTestDatabase, silentLog, type TestDatabase } from "../support/postgres.ts";
import { freshRedisUrl } from "../support/redis.ts";
import {
  BYSTANDER,
  type ConsumerProcess,
  cutConnections,
  eventually,
  loseLock,
  newJobId,
  openTestQueue,
  type QueueAddress,
  startConsumerProcess,
  type TestJob,
} from "./test-queue.ts";

/** The promise. It takes some 7 s (what is left of the lock, then two stalled checks), more on a busy machine. */
const RECOVERY_MS = 15_000;

describe.each(["postgres", "redis"] as const)("queue on %s", (backend) => {
  let database: TestDatabase;
  let redis_url: string | undefined;

  beforeAll(async () => {
    database = await createTestDatabase();
    redis_url = backend === "redis" ? await freshRedisUrl() : undefined;
    const queues = await openQueues({ redis_url, database_url: database.url, migrate: true, log: silentLog });
    await queues.stop();
  });
  afterAll(() => database.drop());

  /** Each test has a queue of its own. */
  const test = baseTest.extend("on", async ({ task }, { onCleanup }) => {
    const harness = await createHarness({ redis_url, database_url: database.url, queue: `predict.${task.id}` });
    onCleanup(() => harness.end());
    return harness;
  });

  test("runs an added job with its data, then forgets it", async ({ on }) => {
    const seen: unknown[] = [];
    await on.consume(async ({ id, data, stalledCount }) => void seen.push({ id, data, stalledCount }));
    const id = newJobId();
    await on.queue.add(id, { n: 7 });
    await on.gone(id);
    expect(seen).toEqual([{ id, data: { n: 7 }, stalledCount: 0 }]);
  });

  test("knows nothing of a job that was never added", async ({ on }) => {
    expect(await on.queue.find(newJobId())).toBeNull();
    expect(await on.queue.remove(newJobId())).toBe(false);
  });

  test("runs lower priorities first, and equal ones in the order they came", async ({ on }) => {
    const order: number[] = [];
    for (const [n, priority] of [
      [1, 10],
      [2, 10],
      [3, 1],
      [4, 1],
      [5, 0],
    ] as const) {
      await on.queue.add(newJobId(), { n }, { priority });
    }
    expect(await on.queue.counts()).toEqual({ waiting: 5, active: 0, failed: 0 });
    await on.consume(async ({ data }) => void order.push(data.n));
    await eventually(async () => order.length === 5);
    expect(order).toEqual([5, 3, 4, 1, 2]);
  });

  test("adding an id twice leaves the first job as it is, waiting, active or failed", async ({ on }) => {
    const id = newJobId();
    await on.queue.add(id, { n: 1 });
    await on.queue.add(id, { n: 2 });
    expect(await on.queue.find(id)).toEqual({ state: "waiting", data: { n: 1 } });

    const held = Promise.withResolvers<void>();
    let runs = 0;
    await on.consume(async ({ data }) => {
      runs += 1;
      expect(data).toEqual({ n: 1 });
      await held.promise;
      throw new Error("boom");
    });
    await on.inState(id, "active");
    await on.queue.add(id, { n: 3 });
    expect(await on.queue.find(id)).toEqual({ state: "active", data: { n: 1 } });
    held.resolve();
    await on.inState(id, "failed");
    await on.queue.add(id, { n: 4 });

    const after = newJobId();
    await on.queue.add(after, { n: 1 });
    await on.inState(after, "failed"); // so everything before it has been looked at
    expect(await on.queue.find(id)).toEqual({ state: "failed", data: { n: 1 } });
    expect(runs).toBe(2);
  });

  test("a job whose handler throws is failed, kept, counted and never retried", async ({ on }) => {
    let runs = 0;
    await on.consume(async () => {
      runs += 1;
      throw new Error("boom");
    });
    const id = newJobId();
    await on.queue.add(id, { n: 1 }, { priority: 1 });
    await on.inState(id, "failed");
    expect(await on.queue.counts()).toEqual({ waiting: 0, active: 0, failed: 1 });
    expect(runs).toBe(1);
    expect(await on.queue.remove(id)).toBe(true);
    expect(await on.queue.find(id)).toBeNull();
  });

  test("counts what waits, runs and failed", async ({ on }) => {
    const { handle, letGo, started } = holding();
    await on.consume(handle, undefined, 2);
    for (let n = 0; n < 5; n += 1) await on.queue.add(newJobId(), { n }, { priority: n });
    await started(2);
    expect(await on.queue.counts()).toEqual({ waiting: 3, active: 2, failed: 0 });
    letGo();
    await eventually(async () => (await on.queue.counts()).waiting === 0);
  });

  test("invalid data never reaches the handler: failed at once and reported", async ({ on }) => {
    const wrong = on.queues.open(on.address.queue, (value) => value as { text: string });
    const reports: unknown[] = [];
    let handled = 0;
    await on.consume(
      async () => void (handled += 1),
      async (id, data, reason) => void reports.push({ id, data, reason }),
    );
    const id = newJobId();
    await wrong.add(id, { text: "not a number" });
    await on.inState(id, "failed");
    expect(reports).toEqual([{ id, data: null, reason: expect.stringContaining("invalid job data") }]);
    expect(await on.queue.find(id)).toEqual({ state: "failed", data: null });
    expect(handled).toBe(0);
  });

  test("a waiting job can be removed, an active one cannot", async ({ on }) => {
    const { handle, letGo, started, seen } = holding();
    await on.consume(handle);
    const active = newJobId();
    await on.queue.add(active, { n: 1 });
    await started();
    const waiting = newJobId();
    await on.queue.add(waiting, { n: 2 }, { priority: 3 });
    expect(await on.queue.remove(waiting)).toBe(true);
    expect(await on.queue.find(waiting)).toBeNull();
    expect(await on.queue.remove(active)).toBe(false);
    letGo();
    await on.gone(active);
    expect(seen.map((job) => job.id)).toEqual([active]);
  });

  test("two consumers never run the same live job at once, and every job runs", async ({ on }) => {
    const running = new Set<string>();
    const runs = new Map<string, number>();
    const handle = async ({ id }: ActiveJob<TestJob>): Promise<void> => {
      expect(running.has(id)).toBe(false);
      running.add(id);
      runs.set(id, (runs.get(id) ?? 0) + 1);
      await new Promise((resolve) => setImmediate(resolve));
      running.delete(id);
    };
    await on.consume(handle, undefined, 4);
    await on.consume(handle, undefined, 4);
    const ids = Array.from({ length: 60 }, newJobId);
    await Promise.all(ids.map((id, n) => on.queue.add(id, { n }, { priority: 1 + (n % 2) })));
    await eventually(async () => runs.size === ids.length);
    expect([...runs.values()].every((count) => count === 1)).toBe(true);
  });

  test("a released job is taken at once by a consumer that waits, with its new data", async ({ on }) => {
    const first = await on.consume(async (job) => {
      await first.pause();
      await elsewhere.promise;
      await job.release({ n: 2 });
      releasedAt = performance.now();
    });
    let releasedAt = 0;
    const elsewhere = Promise.withResolvers<void>();
    const id = newJobId();
    await on.queue.add(id, { n: 1 }, { priority: 5 });
    await on.inState(id, "active");

    const { handle, letGo, seen, started } = holding();
    await on.consume(handle);
    const other = newJobId();
    await on.queue.add(other, { n: 0 });
    await started(); // it takes jobs
    letGo();
    await on.gone(other);
    elsewhere.resolve();
    await started(2);
    expect(performance.now() - releasedAt).toBeLessThan(2_000);
    expect(seen[1]).toMatchObject({ id, data: { n: 2 }, stalledCount: 0 });
    await on.gone(id);
  });

  test("a released job may come back to the same consumer", async ({ on }) => {
    const seen: number[] = [];
    await on.consume(async (job) => {
      seen.push(job.data.n);
      if (job.data.n === 1) await job.release({ n: 2 });
    });
    const id = newJobId();
    await on.queue.add(id, { n: 1 }, { priority: 1 });
    await on.gone(id);
    expect(seen).toEqual([1, 2]);
  });

  test("a paused consumer takes nothing until it resumes", async ({ on }) => {
    const { handle, letGo, seen } = holding();
    letGo();
    const consumer = await on.consume(handle);
    await consumer.pause();
    const id = newJobId();
    await on.queue.add(id, { n: 1 });
    const elsewhere = await on.consumeElsewhere();
    expect(await elsewhere.next("active")).toMatchObject({ id, stalledCount: 0 });
    await elsewhere.kill();
    expect(seen).toEqual([]);
    await consumer.resume();
    await on.queue.add(newJobId(), { n: 2 });
    await eventually(async () => seen.length > 0);
  });

  test("stop waits for the job in hand and takes no more", async ({ on }) => {
    const { handle, letGo, seen, started } = holding();
    const consumer = await on.consume(handle);
    const [first, second] = [newJobId(), newJobId()];
    await on.queue.add(first, { n: 1 });
    await started();
    await on.queue.add(second, { n: 2 });
    let stopped = false;
    const stopping = consumer.stop().then(() => (stopped = true));
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(stopped).toBe(false);
    letGo();
    await stopping;
    expect(seen.map(({ id }) => id)).toEqual([first]);
    expect(await on.queue.find(first)).toBeNull();
    expect((await on.queue.find(second))?.state).toBe("waiting");
    await consumer.stop(); // idempotent
  });

  test("signals reach every subscriber of their kind, in other processes too", async ({ on }) => {
    const elsewhere = await on.consumeElsewhere();
    const heard: Signal[] = [];
    const end = await on.queues.signals.subscribe(["finished", "progress"], (signal) => heard.push(signal));
    const cancel = { kind: "cancel", rollout_id: "rollout_1" } as const;
    await on.queues.signals.publish(cancel);
    expect(await elsewhere.next("signal")).toEqual({ type: "signal", signal: cancel });

    const sent: Signal[] = [
      { kind: "progress", rollout_id: "rollout_1", frames: 12 },
      { kind: "finished", rollout_id: "rollout_1" },
    ];
    for (const signal of sent) await on.queues.signals.publish(signal);
    await eventually(async () => heard.length === 2);
    expect(heard).toEqual(expect.arrayContaining(sent));

    await end();
    await on.queues.signals.publish({ kind: "finished", rollout_id: "rollout_2" });
    await on.queues.signals.publish(cancel);
    await elsewhere.next("signal"); // sent after it, and heard
    expect(heard).toHaveLength(2);
  });

  test("whoever opened the signals alone hears and tells as the others do, and goes on after a cut", async ({ on }) => {
    const { url: database_url, drop } = await roleWithoutRights(database);
    const alone = await openSignals({ redis_url, database_url, log: silentLog });
    const [here, there]: [Signal[], Signal[]] = [[], []];
    await alone.subscribe(["finished"], (signal) => here.push(signal));
    await on.queues.signals.subscribe(["cancel"], (signal) => there.push(signal));
    const [finished, cancel] = [
      { kind: "finished", rollout_id: "rollout_1" },
      { kind: "cancel", rollout_id: "r" },
    ] as const;
    await on.queues.signals.publish({ kind: "queued" });
    await on.queues.signals.publish(finished);
    await alone.publish(cancel);
    await eventually(async () => here.length === 1 && there.length === 1);
    expect([here, there]).toEqual([[finished], [cancel]]);

    await cutConnections(on.address);
    await eventually(async () => {
      await on.queues.signals.publish(finished);
      return here.length > 1;
    }, 20_000);
    await alone.stop();
    await drop();
  });

  test("jobs and signals flow again after every connection was cut", async ({ on }) => {
    const { handle, letGo, seen, started } = holding();
    letGo();
    await on.consume(handle);
    const heard: Signal[] = [];
    await on.queues.signals.subscribe(["finished"], (signal) => heard.push(signal));
    await on.queue.add(newJobId(), { n: 1 });
    await started();

    await cutConnections(on.address);
    const id = newJobId();
    await eventually(() =>
      on.queue.add(id, { n: 2 }).then(
        () => true,
        () => false,
      ),
    );
    await eventually(async () => seen.some((job) => job.id === id));
    await eventually(async () => {
      await on.queues.signals.publish({ kind: "finished", rollout_id: id });
      return heard.length > 0;
    });
    expect(heard[0]).toEqual({ kind: "finished", rollout_id: id });
  });

  test("a stopped process ends by itself", async ({ on }) => {
    const elsewhere = await on.consumeElsewhere();
    elsewhere.tell("stop");
    expect(await elsewhere.exited(8_000)).toBe(0);
  });

  test("stopping twice is fine, and nothing can be opened afterwards", async ({ on }) => {
    await Promise.all([on.queues.stop(), on.queues.stop()]);
    expect(() => on.queues.open("late", () => null)).toThrow("after the queues were stopped");
  });

  // These wait for locks to run out; side by side they wait together.
  describe.concurrent("when a worker dies, hangs or freezes", { timeout: 180_000 }, () => {
    test("a lock is renewed for as long as the job runs", async ({ on }) => {
      let runs = 0;
      const handle = async (): Promise<void> => {
        runs += 1;
        await new Promise((resolve) => setTimeout(resolve, 8_000)); // the thing under test is time: longer than the lock
      };
      await on.consume(handle);
      await on.consume(handle);
      const id = newJobId();
      await on.queue.add(id, { n: 1 });
      await eventually(async () => (await on.queue.find(id)) === null, 20_000);
      expect(runs).toBe(1);
    });

    test("a job whose lock was lost goes on in its process, once, and completes", async ({ on }) => {
      const { handle, letGo, seen, started } = holding();
      await on.consume(handle, undefined, 3);
      const id = newJobId();
      await on.queue.add(id, { n: 1 });
      await started();
      await loseLock(on.address, id);
      await loseLock(on.address, id); // twice is given up when the worker died; this one lives
      expect(await seen[0]?.stillOurs()).toBe(true);
      letGo();
      await on.gone(id);
      expect(seen).toHaveLength(1);
      expect(await on.queue.counts()).toEqual({ waiting: 0, active: 0, failed: 0 });
    });

    test("a worker that froze while its job went elsewhere cannot touch it any more", async ({ on }) => {
      const frozen = await on.consumeElsewhere();
      const id = newJobId();
      await on.queue.add(id, { n: 1 });
      await frozen.next("active");
      frozen.tell("say whose");
      expect(await frozen.next("ours")).toMatchObject({ ours: true });
      frozen.process.kill("SIGSTOP");
      const { handle, letGo, seen, started } = holding();
      const heir = await on.consume(handle);
      await eventually(async () => seen.length > 0, RECOVERY_MS);
      expect(seen[0]).toMatchObject({ id, stalledCount: 1 });

      frozen.process.kill("SIGCONT");
      frozen.tell("say whose");
      expect(await frozen.next("ours")).toMatchObject({ ours: false });
      expect(await seen[0]?.stillOurs()).toBe(true);
      frozen.tell("release");
      expect(await frozen.next("refused")).toMatchObject({ reason: expect.stringContaining("no longer ours") });
      expect(await on.queue.find(id)).toEqual({ state: "active", data: { n: 1 } });
      letGo();
      await started();
      await on.gone(id);
      await heir.stop();
    });

    test("stop is bounded when a handler hangs; the job then runs elsewhere at once, not as one that killed its worker", async ({
      on,
    }) => {
      const { handle, seen, started, letGo } = holding();
      const consumer = await on.consume(handle);
      const id = newJobId();
      await on.queue.add(id, { n: 1 });
      await started();
      const before = performance.now();
      await consumer.stop(300);
      expect(performance.now() - before).toBeLessThan(3_000);
      await expect(seen[0]?.release({ n: 2 })).rejects.toThrow("no longer ours");
      expect(await seen[0]?.stillOurs()).toBe(false);
      expect(await on.queue.find(id)).toEqual({ state: "waiting", data: { n: 1 } });
      const elsewhere = await on.consumeElsewhere();
      expect(await elsewhere.next("active", 2_000)).toMatchObject({ id, data: { n: 1 }, stalledCount: 0 });

      letGo(); // the handler that hung comes to its end, which is nobody's business any more
      elsewhere.tell("say whose");
      expect(await elsewhere.next("ours")).toMatchObject({ ours: true });
      elsewhere.tell("finish");
      await on.gone(id);
    });

    test("a job survives the SIGKILL of its worker once, then is given up", async ({ on }) => {
      const id = newJobId();
      const [first, second] = [await on.consumeElsewhere(), await on.consumeElsewhere()];
      await on.queue.add(id, { n: 1 }, { priority: 1 });
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

      const witness = await on.consumeElsewhere();
      await heir.kill();
      const report = await witness.next("given-up", RECOVERY_MS);
      expect(report).toMatchObject({ id, data: { n: 1 }, reason: "its worker died 2 times" });
      await on.inState(id, "failed");
      await on.queue.add(id, { n: 2 });
      expect(await on.queue.find(id)).toEqual({ state: "failed", data: { n: 1 } });
    });

    test("a job that only stood beside what killed its workers outlives more of them", async ({ on }) => {
      const id = newJobId();
      await on.queue.add(id, { n: BYSTANDER });
      for (let died = 0; died < 2; died++) {
        const worker = await on.consumeElsewhere();
        expect(await worker.next("active", RECOVERY_MS)).toMatchObject({ id, stalledCount: died });
        await worker.kill();
      }
      const worker = await on.consumeElsewhere();
      expect(await worker.next("active", RECOVERY_MS)).toMatchObject({ id, data: { n: BYSTANDER }, stalledCount: 2 });
    });

    test("a given-up job that was not reported is reported by the next consumer", async ({ on }) => {
      const id = newJobId();
      const reporting = Promise.withResolvers<void>();
      const hang = await on.consume(
        async () => undefined,
        async () => {
          reporting.resolve();
          await new Promise(() => undefined);
        },
      );
      const wrong = on.queues.open(on.address.queue, (value) => value as { text: string });
      await wrong.add(id, { text: "invalid" });
      await reporting.promise;
      expect((await on.queue.find(id))?.state).toBe("active");
      await hang.stop(0);
      const witness = await on.consumeElsewhere();
      expect(await witness.next("given-up", RECOVERY_MS)).toMatchObject({ id, data: null });
    });
  });
});

interface Harness {
  readonly address: QueueAddress;
  readonly queues: QueueSystem;
  readonly queue: JobQueue<TestJob>;
  consume(
    handle: (job: ActiveJob<TestJob>) => Promise<void>,
    onGivenUp?: (id: JobId, data: TestJob | null, reason: string) => Promise<void>,
    concurrency?: number,
  ): Promise<Consumer>;
  consumeElsewhere(): Promise<ConsumerProcess>;
  gone(id: JobId, limitMs?: number): Promise<unknown>;
  inState(id: JobId, state: JobState): Promise<unknown>;
  end(): Promise<void>;
}

async function createHarness(address: QueueAddress): Promise<Harness> {
  const { queues, queue } = await openTestQueue(address, silentLog);
  const consumers: Consumer[] = [];
  const processes: ConsumerProcess[] = [];
  return {
    address,
    queues,
    queue,
    async consume(handle, onGivenUp, concurrency = 1) {
      const consumer = await queue.consume({ concurrency, handle, ...(onGivenUp && { onGivenUp }) });
      consumers.push(consumer);
      return consumer;
    },
    async consumeElsewhere() {
      const consumer = await startConsumerProcess(address);
      processes.push(consumer);
      return consumer;
    },
    gone: (id, limitMs) => eventually(async () => (await queue.find(id)) === null, limitMs),
    inState: (id, state) => eventually(async () => (await queue.find(id))?.state === state),
    async end() {
      await Promise.all(processes.map((process) => process.kill()));
      await Promise.all(consumers.map((consumer) => consumer.stop(0)));
      await queues.stop();
    },
  };
}

/** May connect to that database, and do nothing in it. */
async function roleWithoutRights({ db, url }: TestDatabase): Promise<{ url: string; drop: () => Promise<void> }> {
  const role = `listener_${process.pid}_${Date.now()}`;
  await db.query(`CREATE ROLE ${role} LOGIN PASSWORD 'secret'`);
  const as = new URL(url);
  as.username = role;
  as.password = "secret";
  return { url: as.href, drop: async () => void (await db.query(`DROP ROLE ${role}`)) };
}

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
