import { Registry } from "prom-client";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";

import { jobIdOf, type RolloutId } from "#contract/ids.ts";
import { systemClock } from "#platform/clock.ts";
import type { Service } from "#platform/lifecycle.ts";
import { createDatabase } from "#platform/database.ts";
import { predictQueue } from "#queue/queues.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import { startScheduler } from "#scheduler/scheduler.ts";

import { eventually } from "../queue/test-queue.ts";
import { accept } from "../support/ledger.ts";
import { silentLog } from "../support/postgres.ts";
import { type Fixture, openFixture } from "./scheduler-fixture.ts";

let fixture: Fixture;
const running: Service[] = [];

beforeAll(async () => {
  fixture = await openFixture();
});
afterEach(async () => {
  await Promise.all(running.splice(0).map((service) => service.stop()));
});
afterAll(() => fixture.end());

/** Each scheduler has a pool of its own, as each process has. */
async function start(holder: string): Promise<{ isLeader(): boolean; stop(): Promise<void> }> {
  const { database, queues, blobs, models } = fixture;
  const db = createDatabase({ url: database.urlAs("scheduler"), log: silentLog });
  const scheduler = await startScheduler({
    db,
    queues,
    blobs,
    models,
    scaling: { fleet: null, limits: { minimum: 0, maximum: 1, scaledown_s: 60 } },
    retentionMs: 24 * 3_600_000,
    datasetIdleMs: 30 * 86_400_000,
    scoredAtOnceMax: 2,
    gpuUsdPerHour: 3.95,
    holder,
    clock: systemClock,
    log: silentLog,
    registry: new Registry(),
  });
  const stop = async (): Promise<void> => {
    await scheduler.stop();
    await db.stop();
  };
  running.push({ stop });
  return { isLeader: () => scheduler.isLeader(), stop };
}

const leader = async (): Promise<{ epoch: bigint; holder: string }> => {
  const [row] = await fixture.database.db.query<{ epoch: bigint; holder: string }>(
    "SELECT epoch, holder FROM scheduler_leader",
  );
  if (!row) throw new Error("scheduler_leader is empty");
  return row;
};

const dispatchOf = (id: RolloutId): Promise<Rollout> =>
  eventually(async () => {
    const row = await fixture.read(id);
    return row.status === "dispatched" && row;
  });

/** Ends the connection that holds the lock, as a network fault would. */
async function cutLeader(): Promise<void> {
  await fixture.database.db.query(
    `SELECT pg_terminate_backend(pid) FROM pg_locks
      WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`,
  );
}

test("dispatches what customers queue", async () => {
  await start("only");
  const { id } = await accept(fixture.database.db, fixture.key);
  await fixture.queues.signals.publish({ kind: "queued" });
  expect(await dispatchOf(id)).toMatchObject({ status: "dispatched", attempt: 1 });
});

test("without any worker, what may wait for a second expires after it, refunded in full", async () => {
  await start("only");
  const { db } = fixture.database;
  const { id, charge_mils } = await accept(db, fixture.key, { deadline_at: new Date(Date.now() + 1_000) });
  await fixture.queues.signals.publish({ kind: "queued" });
  const row = await eventually(async () => {
    const now = await fixture.read(id);
    return now.finished_at !== null && now;
  });
  expect(row).toMatchObject({ status: "expired", attempt: 1, refunded_mils: charge_mils });
  // Its job goes after the refund is committed.
  await eventually(
    async () => (await predictQueue(fixture.queues, row.model, "realtime").find(jobIdOf(id, 1))) === null,
  );
});

test("of two schedulers one leads; the other takes over with a higher epoch", async () => {
  const first = await start("first");
  await eventually(async () => first.isLeader());
  const before = await leader();
  expect(before.holder).toBe("first");
  const second = await start("second");
  expect(second.isLeader()).toBe(false);

  await first.stop();
  await eventually(async () => second.isLeader());
  expect(await leader()).toEqual({ epoch: before.epoch + 1n, holder: "second" });
  const { id } = await accept(fixture.database.db, fixture.key);
  expect(await dispatchOf(id)).toMatchObject({ status: "dispatched", attempt: 1 });
});

test("a leader that loses its lock stops acting, and leads again only in a new term", async () => {
  const scheduler = await start("only");
  await eventually(async () => scheduler.isLeader());
  const before = await leader();
  await cutLeader();
  await eventually(async () => (await leader()).epoch > before.epoch && scheduler.isLeader());
  const { id } = await accept(fixture.database.db, fixture.key);
  expect(await dispatchOf(id)).toMatchObject({ status: "dispatched", attempt: 1 });
});
