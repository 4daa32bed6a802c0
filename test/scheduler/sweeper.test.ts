/** The sweep against a real database, a real queue and real blobs, at every point where a process can have died. */
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";

import { jobIdOf, type RolloutId } from "#contract/ids.ts";
import { blobKeys, type RolloutResult } from "#contract/jobs.ts";
import { verifyLedger } from "#ledger/verify.ts";
import { type Clock, systemClock } from "#platform/clock.ts";
import { predictQueue, settlementQueue } from "#queue/queues.ts";
import type { Signal } from "#queue/signals.ts";
import { markDispatched, predictJobOf } from "#rollouts/dispatch.ts";
import { tryLead } from "#rollouts/leader.ts";
import { renewLease } from "#rollouts/leases.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import type { Loop } from "#platform/loop.ts";
import { startSweeper, type SweeperOptions } from "#scheduler/sweep/sweeper.ts";

import { eventually } from "../queue/test-queue.ts";
import { accept, CHARGE } from "../support/ledger.ts";
import { silentLog } from "../support/postgres.ts";
import { type Fixture, MODEL, openFixture } from "./scheduler-fixture.ts";

let fixture: Fixture;
let epoch: bigint;
let resign: () => Promise<void>;
let sweeper: Loop | undefined;

beforeAll(async () => {
  fixture = await openFixture();
  const leadership = await tryLead(fixture.database.as("scheduler"), "test");
  if (!leadership) throw new Error("somebody else leads");
  ({ epoch } = leadership);
  resign = () => leadership.resign();
});
afterAll(async () => {
  await resign();
  await fixture.end();
});

afterEach(async () => {
  await sweeper?.stop();
  sweeper = undefined;
});

function sweep(options: Partial<SweeperOptions> = {}): void {
  const { database, queues, blobs, metrics } = fixture;
  sweeper = startSweeper({
    db: database.as("scheduler"),
    queues,
    blobs,
    metrics,
    epoch,
    clock: systemClock,
    log: silentLog,
    ...options,
  });
}

/** Committed as dispatched, and due for a look now; its job is not in the queue, as after a crash right there. */
async function dispatched(overrides: Parameters<typeof accept>[2] = {}): Promise<Rollout> {
  const { db } = fixture.database;
  const { id } = await accept(db, fixture.key, overrides);
  const [rollout] = await markDispatched(db, epoch, [id]);
  if (!rollout) throw new Error("not dispatched");
  await db.query("UPDATE rollouts SET sweep_at = now() WHERE id = $1", [id]);
  return rollout;
}

/** Moves the deadline into the past, further than the slack when `over`. */
async function pastDeadline(id: RolloutId): Promise<void> {
  await fixture.database.db.query("UPDATE rollouts SET deadline_at = now() - interval '1 minute' WHERE id = $1", [id]);
}

const ended = (id: RolloutId): Promise<Rollout> =>
  eventually(async () => {
    const row = await fixture.read(id);
    return row.finished_at !== null && row;
  });

/** Until the sweep has looked at it and put the next look off. */
const lookedAt = (id: RolloutId): Promise<Rollout> =>
  eventually(async () => {
    const row = await fixture.read(id);
    return row.sweep_at !== null && row.sweep_at.getTime() > Date.now() && row;
  });

function resultOf({ id, attempt }: Rollout): RolloutResult {
  return {
    video_keys: [blobKeys.video(id, attempt, "run", 0)],
    frames: 49,
    timings: { engine_wall_ms: 100, fetch_ms: 1, encode_ms: 1, total_ms: 102 },
  };
}
const putResult = (rollout: Rollout): Promise<void> =>
  fixture.blobs.put(blobKeys.result(rollout.id, rollout.attempt), Buffer.from(JSON.stringify(resultOf(rollout))));

test("the scheduler died between commit and add: the job is added again under the same id", async () => {
  const rollout = await dispatched();
  sweep();
  await lookedAt(rollout.id);
  const job = await predictQueue(fixture.queues, MODEL, "realtime").find(jobIdOf(rollout.id, 1));
  expect(job?.data).toEqual(predictJobOf(rollout));
  expect(await fixture.read(rollout.id)).toMatchObject({ status: "dispatched", attempt: 1 });
  await sweeper?.stop();

  const bulk = await dispatched({ lane: "bulk" });
  sweep();
  await lookedAt(bulk.id);
  const bulkQueue = predictQueue(fixture.queues, MODEL, "bulk");
  expect((await bulkQueue.find(jobIdOf(bulk.id, 1)))?.data).toEqual(predictJobOf(bulk));
  await bulkQueue.remove(jobIdOf(bulk.id, 1)); // its consumers below would take it
});

test("what no worker has begun by its start_by expires, refunded in full, and is taken out of the workers' queue", async () => {
  const { db } = fixture.database;
  const { id } = await accept(db, fixture.key, { lane: "bulk", deadline_at: new Date(Date.now() + 1_000) });
  const [rollout] = await markDispatched(db, epoch, [id]);
  if (!rollout) throw new Error("not dispatched");
  const queue = predictQueue(fixture.queues, MODEL, "bulk");
  await queue.add(jobIdOf(id, 1), predictJobOf(rollout));
  sweep();
  const { status, refunded_mils, finished_at } = await ended(id);
  expect({ status, refunded_mils }).toEqual({ status: "expired", refunded_mils: rollout.charge_mils });
  expect(finished_at?.getTime()).toBeGreaterThanOrEqual(rollout.start_by?.getTime() ?? Number.POSITIVE_INFINITY);
  expect(finished_at?.getTime()).toBeLessThan((rollout.start_by?.getTime() ?? 0) + 4_000);
  await eventually(async () => (await queue.find(jobIdOf(id, 1))) === null);
});

test("what a worker began in time, or has tried once, goes on after its start_by", async () => {
  const { db } = fixture.database;
  const queue = predictQueue(fixture.queues, MODEL, "bulk");
  const retried = await dispatched({ lane: "bulk", deadline_at: new Date(Date.now() - 1_000) });
  await queue.add(jobIdOf(retried.id, 1), { ...predictJobOf(retried), alone: true });
  sweep();
  await lookedAt(retried.id);
  expect((await fixture.read(retried.id)).status).toBe("dispatched");
  await queue.remove(jobIdOf(retried.id, 1));
  await sweeper?.stop();

  const rollout = await dispatched({ lane: "bulk", deadline_at: new Date(Date.now() - 1_000) });
  await queue.add(jobIdOf(rollout.id, 1), predictJobOf(rollout));
  const letGo = Promise.withResolvers<void>();
  const consumer = await queue.consume({ concurrency: 1, handle: () => letGo.promise });
  try {
    await eventually(async () => (await queue.find(jobIdOf(rollout.id, 1)))?.state === "active");
    let now = Date.now();
    sweep({ clock: { now: () => now } });
    await lookedAt(rollout.id);
    expect((await fixture.read(rollout.id)).status).toBe("dispatched");
    now = rollout.deadline_at.getTime() + 16_000; // and the time that a worker has to report
    expect(await ended(rollout.id)).toMatchObject({ status: "expired", refunded_mils: rollout.charge_mils });
  } finally {
    letGo.resolve();
    await consumer.stop();
    await db.query("UPDATE rollouts SET sweep_at = 'infinity' WHERE id = $1", [retried.id]);
  }
});

test("what nobody came to run expires at its deadline, refunded, and its idempotency key is free", async () => {
  const { db } = fixture.database;
  const overrides = { lane: "bulk", idempotency_key: "expires", deadline_at: new Date(Date.now() + 300) } as const;
  const { id, charge_mils } = await accept(db, fixture.key, overrides);
  sweep();
  expect(await ended(id)).toMatchObject({ status: "expired", refunded_mils: charge_mils });
  expect(await db.query("SELECT FROM idempotency_keys WHERE key = 'expires'")).toEqual([]);
});

test("a job that waits for a worker is left alone", async () => {
  const rollout = await dispatched();
  await predictQueue(fixture.queues, MODEL, "realtime").add(jobIdOf(rollout.id, 1), predictJobOf(rollout));
  sweep();
  await lookedAt(rollout.id);
  expect((await fixture.read(rollout.id)).status).toBe("dispatched");
});

test("a bulk job that an older version left in the realtime queue is found there, and goes with its rollout", async () => {
  const rollout = await dispatched({ lane: "bulk" });
  const old = predictQueue(fixture.queues, MODEL, "realtime");
  await old.add(jobIdOf(rollout.id, 1), predictJobOf(rollout), { priority: 10 });
  sweep();
  await lookedAt(rollout.id);
  expect(await predictQueue(fixture.queues, MODEL, "bulk").find(jobIdOf(rollout.id, 1))).toBeNull(); // not added again
  expect((await fixture.read(rollout.id)).status).toBe("dispatched");
  await pastDeadline(rollout.id);
  await fixture.database.db.query("UPDATE rollouts SET sweep_at = now(), start_by = NULL WHERE id = $1", [rollout.id]);
  sweeper?.wake();
  expect(await ended(rollout.id)).toMatchObject({ status: "expired", refunded_mils: CHARGE });
  await eventually(async () => (await old.find(jobIdOf(rollout.id, 1))) === null);
});

test("the settlement message was lost, the result is there: settled as delivered, nothing refunded", async () => {
  const rollout = await dispatched();
  await putResult(rollout);
  sweep();
  expect(await ended(rollout.id)).toMatchObject({
    status: "succeeded",
    refunded_mils: 0n,
    result: resultOf(rollout),
  });
});

test("a result of an earlier attempt counts for nothing", async () => {
  const rollout = await dispatched();
  await putResult({ ...rollout, attempt: 2 });
  sweep();
  await lookedAt(rollout.id);
  expect((await fixture.read(rollout.id)).status).toBe("dispatched");
});

test("a result that is not readable counts for nothing", async () => {
  const rollout = await dispatched();
  await fixture.blobs.put(blobKeys.result(rollout.id, 1), Buffer.from('{"frames":"many"}'));
  sweep();
  await lookedAt(rollout.id);
  expect((await fixture.read(rollout.id)).status).toBe("dispatched");
});

test("a result that is no JSON at all does not keep a lost rollout from its refund", async () => {
  const rollout = await dispatched();
  await fixture.blobs.put(blobKeys.result(rollout.id, 1), Buffer.from('{"frames":'));
  await pastDeadline(rollout.id);
  sweep();
  expect(await ended(rollout.id)).toMatchObject({ status: "failed", error_code: "lost", refunded_mils: CHARGE });
});

test("the job failed: refunded in full as engine_failed", async () => {
  const rollout = await dispatched();
  const queue = predictQueue(fixture.queues, MODEL, "realtime");
  await queue.add(jobIdOf(rollout.id, 1), predictJobOf(rollout));
  const consumer = await queue.consume({
    concurrency: 10,
    handle: async ({ data }) => {
      if (data.rollout_id === rollout.id) throw new Error("bad graph");
    },
  });
  await eventually(async () => (await queue.find(jobIdOf(rollout.id, 1)))?.state === "failed");
  await consumer.stop(0);
  sweep();
  expect(await ended(rollout.id)).toMatchObject({
    status: "failed",
    error_code: "engine_failed",
    refunded_mils: CHARGE,
  });
});

test("the settlement failed in its consumer: settled directly from its data", async () => {
  const rollout = await dispatched();
  const queue = settlementQueue(fixture.queues);
  const jobId = jobIdOf(rollout.id, 1);
  const outcome = { kind: "succeeded", result: resultOf(rollout) } as const;
  await queue.add(jobId, { rollout_id: rollout.id, attempt: 1, outcome });
  const consumer = await queue.consume({
    concurrency: 1,
    handle: () => Promise.reject(new Error("the database is away")),
  });
  await eventually(async () => (await queue.find(jobId))?.state === "failed");
  await consumer.stop(0);
  sweep();
  expect(await ended(rollout.id)).toMatchObject({ status: "succeeded", refunded_mils: 0n });
});

test("a settlement that nobody consumes is settled when the deadline is over", async () => {
  const rollout = await dispatched();
  const outcome = { kind: "succeeded", result: resultOf(rollout) } as const;
  await settlementQueue(fixture.queues).add(jobIdOf(rollout.id, 1), { rollout_id: rollout.id, attempt: 1, outcome });
  sweep();
  await lookedAt(rollout.id);
  expect((await fixture.read(rollout.id)).status).toBe("dispatched");
  await pastDeadline(rollout.id);
  await fixture.database.db.query("UPDATE rollouts SET sweep_at = now() WHERE id = $1", [rollout.id]);
  sweeper?.wake();
  expect(await ended(rollout.id)).toMatchObject({ status: "succeeded" });
});

test("lost without a trace and past its deadline: refunded as lost", async () => {
  const rollout = await dispatched();
  await pastDeadline(rollout.id);
  sweep();
  expect(await ended(rollout.id)).toMatchObject({ status: "failed", error_code: "lost", refunded_mils: CHARGE });
});

test("in a worker's hands long past its deadline: expired, refunded, and the worker told to stop", async () => {
  const signals: Signal[] = [];
  const unsubscribe = await fixture.queues.signals.subscribe(["cancel", "finished"], (signal) => {
    signals.push(signal);
  });
  const rollout = await dispatched();
  await predictQueue(fixture.queues, MODEL, "realtime").add(jobIdOf(rollout.id, 1), predictJobOf(rollout));
  await pastDeadline(rollout.id);
  sweep();
  expect(await ended(rollout.id)).toMatchObject({ status: "expired", refunded_mils: CHARGE });
  const heard = (kind: string): boolean =>
    signals.some((signal) => signal.kind === kind && "rollout_id" in signal && signal.rollout_id === rollout.id);
  await eventually(async () => heard("cancel") && heard("finished"));
  expect(await predictQueue(fixture.queues, MODEL, "realtime").find(jobIdOf(rollout.id, 1))).toBeNull();
  await unsubscribe();
});

test("queued past its deadline: expired and refunded", async () => {
  const { id } = await accept(fixture.database.db, fixture.key, { deadline_at: new Date(Date.now() - 1_000) });
  sweep();
  expect(await ended(id)).toMatchObject({ status: "expired", refunded_mils: CHARGE, attempt: 0 });
});

/** Five times as fast: gateways get their 15 s to renew a lease within 3. */
const startedMs = Date.now();
const fast: Clock = { now: () => startedMs + 5 * (Date.now() - startedMs) };

test("its client waited at a gateway that is gone: cancelled and refunded; that of a living one goes on", async () => {
  const { db } = fixture.database;
  await renewLease(db, "gateway-alive");
  await renewLease(db, "gateway-dead");
  await db.query("UPDATE gateway_leases SET seen_at = now() - interval '1 minute' WHERE id = 'gateway-dead'");
  const kept = await accept(db, fixture.key, { waiter_id: "gateway-alive" });
  const orphaned = await accept(db, fixture.key, { waiter_id: "gateway-dead" });
  const running = await dispatched({ waiter_id: "gateway-never-seen" });
  const queue = predictQueue(fixture.queues, MODEL, "realtime");
  await queue.add(jobIdOf(running.id, 1), predictJobOf(running));
  sweep({ clock: fast });
  expect(await ended(orphaned.id)).toMatchObject({ status: "cancelled", refunded_mils: CHARGE });
  expect(await ended(running.id)).toMatchObject({ status: "cancelled", refunded_mils: CHARGE });
  expect((await fixture.read(kept.id)).status).toBe("queued");
  await eventually(async () => (await queue.find(jobIdOf(running.id, 1))) === null);
});

test("a leader whose term is over does not touch what is dispatched", async () => {
  const rollout = await dispatched();
  await putResult(rollout);
  sweep({ epoch: epoch - 1n });
  const marker = await accept(fixture.database.db, fixture.key, { deadline_at: new Date(Date.now() - 1_000) });
  await ended(marker.id); // a whole round has begun and its reads are done
  await sweeper?.stop();
  expect((await fixture.read(rollout.id)).status).toBe("dispatched");
  sweep();
  expect(await ended(rollout.id)).toMatchObject({ status: "succeeded" });
});

test("one rollout whose look fails does not keep the others from theirs", async () => {
  const broken = await dispatched();
  const sound = await dispatched();
  await putResult(sound);
  const failing = {
    ...fixture.blobs,
    get: (key: string) => (key.includes(broken.id) ? Promise.reject(new Error("disk")) : fixture.blobs.get(key)),
  };
  sweep({ blobs: failing });
  expect(await ended(sound.id)).toMatchObject({ status: "succeeded" });
  expect((await fixture.read(broken.id)).status).toBe("dispatched");
});

test("a queue that is away costs a round one look, and deadlines come before the next", async () => {
  for (let n = 0; n < 3; n++) await dispatched();
  let due: RolloutId | undefined;
  const dueHadEnded: boolean[] = [];
  const away: typeof fixture.queues = {
    ...fixture.queues,
    open: (name, parse) => ({
      ...fixture.queues.open(name, parse),
      async find() {
        due ??= (await accept(fixture.database.db, fixture.key, { deadline_at: new Date(Date.now() - 1_000) })).id;
        dueHadEnded.push((await fixture.read(due)).finished_at !== null);
        throw new Error("the queue is away");
      },
    }),
  };
  sweep({ queues: away });
  await eventually(async () => dueHadEnded.length >= 2);
  expect(dueHadEnded.slice(0, 2)).toEqual([false, true]);
});

test("after all of this the books balance", async () => {
  expect(await verifyLedger(fixture.database.db)).toEqual([]);
});
