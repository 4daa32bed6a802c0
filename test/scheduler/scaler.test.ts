/** The scaler on a real database and queue; its workers are a fleet that keeps what it was told, and breaks when the test says. */
import { Registry } from "prom-client";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";

import type { Manifest } from "#contract/manifest.ts";
import { type Clock, systemClock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import { listPoolEvents } from "#pools/events.ts";
import { type Pool, readPools } from "#pools/pool.ts";
import { setAlwaysWarm } from "#pools/settings.ts";
import { type Leadership, tryLead } from "#rollouts/leader.ts";
import { settle } from "#rollouts/settle.ts";
import type { FleetDriver, PoolWorkers } from "#scheduler/scaling/fleet/fleet.ts";
import { createPoolMetrics } from "#scheduler/scaling/metrics.ts";
import { type Scaler, type ScalingSetup, startScaler } from "#scheduler/scaling/scaler.ts";

import { eventually, newJobId, openTestQueue, startConsumerProcess } from "../queue/test-queue.ts";
import { accept, dispatch, succeeded } from "../support/ledger.ts";
import { readPoolHours } from "../support/pools.ts";
import { silentLog } from "../support/postgres.ts";
import { type Fixture, MODEL, openFixture } from "./scheduler-fixture.ts";

let fixture: Fixture;
let db: Database;
const registry = new Registry();
const metrics = createPoolMetrics(registry);
const running: { stop(): Promise<void> }[] = [];

beforeAll(async () => {
  fixture = await openFixture();
  db = fixture.database.as("scheduler");
});
afterEach(async () => {
  for (const service of running.splice(0).toReversed()) await service.stop();
  const { db: owner } = fixture.database;
  for (const table of ["pools", "pool_hours", "pool_events", "pool_settings", "pool_gaps"])
    await owner.query(`DELETE FROM ${table}`);
});
afterAll(() => fixture.end());

interface ObedientFleet extends FleetDriver {
  /** What it was told, in order. */
  readonly told: { readonly model: string; readonly desired: number }[];
  /** Its workers: made by the first look after the call that asked for them. */
  readonly workers: Map<string, PoolWorkers>;
  broken: string | null;
}

const NOBODY: PoolWorkers = { ready: [], starting: [], draining: 0, crash_loop: null, starts_s: [] };

function createFleet(clock: Clock): ObedientFleet {
  const fleet: ObedientFleet = {
    told: [],
    workers: new Map(),
    broken: null,
    async observe(model) {
      if (model === fleet.broken) throw new Error("the fleet does not answer");
      return fleet.workers.get(model) ?? NOBODY;
    },
    async scale(model, desired) {
      fleet.told.push({ model, desired });
      const ready = Array.from({ length: desired }, (_, n) => ({
        name: `${n}`,
        jobs: 0,
        idle_since_ms: clock.now(),
        busy_ms: 0,
      }));
      fleet.workers.set(model, { ...NOBODY, ready });
    },
    stop: async () => undefined,
  };
  return fleet;
}

async function lead(): Promise<Leadership> {
  const leadership = await eventually(() => tryLead(db, "test"));
  running.push({ stop: () => leadership.resign() });
  return leadership;
}

async function start(options: {
  readonly fleet: FleetDriver | null;
  readonly epoch: bigint;
  readonly models?: readonly Manifest[];
  readonly limits?: Partial<ScalingSetup["limits"]>;
  readonly clock?: Clock;
}): Promise<Scaler> {
  const { fleet, epoch, models = fixture.models, limits, clock = systemClock } = options;
  const scaler = await startScaler({
    db,
    queues: fixture.queues,
    models,
    scaling: {
      fleet: fleet && { kind: "local", driver: fleet },
      limits: { minimum: 0, maximum: 3, scaledown_s: 60, ...limits },
    },
    epoch,
    scoredAtOnceMax: 2,
    clock,
    log: silentLog,
    metrics,
  });
  running.push(scaler);
  return scaler;
}

/** A model's row, once it is as it should be. */
const poolOnce = (isSo: (pool: Pool) => boolean, model = MODEL): Promise<Pool> =>
  eventually(async () => {
    const pool = (await readPools(db)).find((row) => row.model === model);
    return pool !== undefined && isSo(pool) && pool;
  });

const lastTold = (fleet: ObedientFleet): number | undefined => fleet.told.at(-1)?.desired;

test("brings a worker when work comes, lets it go after the window, and writes down each", async () => {
  const { epoch } = await lead();
  let skippedMs = 0;
  const clock: Clock = { now: () => Date.now() + skippedMs };
  const fleet = createFleet(clock);
  const scaler = await start({ fleet, epoch, clock });
  await poolOnce(({ reason }) => reason.kind === "no_work");
  expect(lastTold(fleet)).toBe(0);

  const { id } = await accept(fixture.database.db, fixture.key);
  await fixture.queues.signals.publish({ kind: "queued" });
  await poolOnce((pool) => pool.ready === 1 && pool.waiting_rollouts === 1);
  await eventually(async () => scaler.liveWorkers(MODEL) === 1);

  await dispatch(fixture.database.db, id);
  const { reason } = await poolOnce((pool) => pool.reason.kind === "scaledown_window");
  expect(reason).toMatchObject({ peak: 1, window_s: 60 });
  skippedMs += 59_000 - 1_000;
  await poolOnce((pool) => pool.looked_at.getTime() > Date.now() + 50_000 && pool.ready === 1);
  expect(lastTold(fleet)).toBe(1);
  skippedMs += 3_000;
  await poolOnce((pool) => pool.ready === 0 && pool.reason.kind === "no_work");

  const events = await listPoolEvents(db, { model: MODEL, kinds: ["scaled"], since: null, limit: 10 });
  expect(events.map(({ detail, by }) => ({ ...detail, by }))).toMatchObject([
    { from: 1, to: 0, reason: { kind: "scale_in" }, by: "scheduler" },
    { from: 0, to: 1, reason: { kind: "from_zero", waiting_rollouts: 1 }, by: "scheduler" },
  ]);
  // Written a moment after the row.
  const gaps = () => fixture.database.db.query("SELECT ended_at IS NULL AS open FROM pool_gaps ORDER BY began_at");
  await expect.poll(gaps, { timeout: 10_000 }).toEqual([{ open: false }, { open: true }]);
  await scaler.stop();
  const [hour] = await readPoolHours(db, new Date(0), new Date(clock.now() + 3_600_000));
  expect(hour?.ready_s).toBeGreaterThan(0);
  expect(hour?.busy_s).toBe(0);
});

test("jobs of a worker that is gone bring one", async () => {
  const { url } = fixture.database;
  const address = { redis_url: undefined, database_url: url, queue: `predict.${MODEL}` };
  const { queues, queue } = await openTestQueue(address, silentLog);
  const consumer = await startConsumerProcess(address);
  const id = newJobId();
  await queue.add(id, { n: 1 });
  await consumer.next("active");
  await consumer.kill();
  expect(await queue.counts()).toMatchObject({ active: 1, waiting: 0 });

  const { epoch } = await lead();
  const fleet = createFleet(systemClock);
  await start({ fleet, epoch });
  await eventually(async () => lastTold(fleet) === 1);
  const events = await listPoolEvents(db, { model: MODEL, kinds: ["scaled"], since: null, limit: 1 });
  expect(events).toMatchObject([{ detail: { from: 0, to: 1, reason: { kind: "orphaned_work", active_rollouts: 1 } } }]);
  await fixture.database.db.query("DELETE FROM bullmq.job WHERE id = $1", [id]);
  await queues.stop();
}, 60_000);

test("what an operator keeps warm stays warm, and goes when that is taken back", async () => {
  const { epoch } = await lead();
  const fleet = createFleet(systemClock);
  await setAlwaysWarm(fixture.database.db, { model: MODEL, workers: 2, by: "ann", why: "a complaint" });
  await start({ fleet, epoch, limits: { scaledown_s: 0 } });
  await poolOnce((pool) => pool.ready === 2 && pool.reason.kind === "always_warm");
  expect(await registry.getSingleMetricAsString("dream_pool_always_warm_workers")).toMatch(
    /\{model="pusht-small"\} 2$/m,
  );
  await setAlwaysWarm(fixture.database.db, { model: MODEL, workers: null, by: "ann", why: "it was taken back" });
  await poolOnce((pool) => pool.ready === 0 && pool.always_warm_workers === null);
});

test("what a leader decides after another one leads comes to nothing", async () => {
  const before = await lead();
  const [old, next] = [createFleet(systemClock), createFleet(systemClock)];
  await start({ fleet: old, epoch: before.epoch, limits: { minimum: 1 } });
  await poolOnce((pool) => pool.ready === 1);

  await before.resign(); // its process does not know
  const { epoch } = await lead();
  const looksAfter = old.told.length;
  await start({ fleet: next, epoch, limits: { minimum: 2 } });
  await poolOnce((pool) => pool.ready === 2);
  const events = await listPoolEvents(db, { model: MODEL, kinds: ["scaled"], since: null, limit: 10 });
  const { looked_at } = await poolOnce((pool) => pool.minimum === 2);
  // The old one looks on, and on: for as long as it takes the new one to write a few rows.
  await poolOnce((pool) => pool.looked_at.getTime() > looked_at.getTime() + 2_500);
  expect(old.told.length - looksAfter).toBeLessThanOrEqual(1); // one that was under way
  expect((await readPools(db)).map(({ minimum, desired }) => ({ minimum, desired }))).toEqual([
    { minimum: 2, desired: 2 },
  ]);
  expect(await listPoolEvents(db, { model: MODEL, kinds: ["scaled"], since: null, limit: 10 })).toEqual(events);
});

test("a model whose fleet does not answer holds up no other, and is looked after again when it does", async () => {
  const { epoch } = await lead();
  const fleet = createFleet(systemClock);
  fleet.broken = MODEL;
  const [manifest] = fixture.models;
  if (manifest === undefined) throw new Error("the fixture has a model");
  const models = [manifest, { ...manifest, slug: "other" }];
  const scaler = await start({ fleet, epoch, models, limits: { minimum: 1 } });
  await poolOnce((pool) => pool.ready === 1, "other");
  await expect.poll(() => scaler.liveWorkers("other"), { timeout: 10_000 }).toBe(1); // a moment after the row
  expect(scaler.liveWorkers(MODEL)).toBeNull();
  // Nothing is said of a pool that nobody could see.
  expect((await readPools(db)).map(({ model }) => model)).toEqual(["other"]);
  expect(fleet.told.filter(({ model }) => model === MODEL)).toEqual([]);
  fleet.broken = null;
  await poolOnce((pool) => pool.ready === 1);
});

test("a crash loop is an event, once", async () => {
  const { epoch } = await lead();
  const fleet = createFleet(systemClock);
  fleet.scale = async () => undefined;
  fleet.workers.set(MODEL, { ...NOBODY, crash_loop: "exit code 3", starting: [{ name: "0", since_ms: 0 }] });
  await start({ fleet, epoch });
  const { looked_at } = await poolOnce(({ crash_loop }) => crash_loop === "exit code 3");
  await poolOnce((pool) => pool.looked_at > looked_at);
  const events = await listPoolEvents(db, { model: MODEL, kinds: ["crash_loop"], since: null, limit: 10 });
  expect(events).toMatchObject([{ detail: { cause: "exit code 3" } }]);
  expect(await registry.getSingleMetricAsString("dream_pool_crash_loop")).toMatch(/\{model="pusht-small"\} 1$/m);
});

test("where somebody else runs the workers, the pool is told from what they do", async () => {
  const { epoch } = await lead();
  const scaler = await start({ fleet: null, epoch });
  expect(await poolOnce(({ ready }) => ready === 0)).toMatchObject({
    fleet: "none",
    starting: 0,
    reason: { kind: "unmanaged" },
  });
  expect(scaler.liveWorkers(MODEL)).toBeNull();
  const { db: owner } = fixture.database;
  const { id } = await accept(owner, fixture.key);
  await dispatch(owner, id);
  await settle(owner, id, 1, succeeded());
  expect(await poolOnce(({ ready }) => ready === 1)).toMatchObject({ desired: 1, reason: { kind: "unmanaged" } });
  expect(await listPoolEvents(db, { model: MODEL, kinds: null, since: null, limit: 10 })).toEqual([]);
});

test("a standby shows nothing: the figures of a term end with it", async () => {
  const { epoch } = await lead();
  const scaler = await start({ fleet: createFleet(systemClock), epoch, limits: { minimum: 1 } });
  await poolOnce((pool) => pool.ready === 1);
  // They are set a moment after the row is written.
  const shown = await eventually(async () => {
    const text = await registry.metrics();
    return /dream_pool_workers\{model="pusht-small",state="ready"\} 1/.test(text) && text;
  });
  expect(shown.match(/^dream_pool_reason\{model="pusht-small",reason="\w+"\} 1$/gm)).toHaveLength(1);
  await scaler.stop();
  expect(await registry.metrics()).not.toMatch(/dream_pool_workers\{/);
  expect(await registry.metrics()).not.toMatch(/dream_pool_reason\{/);
});

test("that cannot hear of work runs nothing: who leads next begins anew", async () => {
  const { epoch } = await lead();
  const fleet = createFleet(systemClock);
  let looks = 0;
  const counting: FleetDriver = { ...fleet, observe: (model) => ((looks += 1), fleet.observe(model)) };
  const deaf = { ...fixture.queues.signals, subscribe: () => Promise.reject(new Error("the queue is away")) };
  const starting = startScaler({
    db,
    queues: { ...fixture.queues, signals: deaf },
    models: fixture.models,
    scaling: { fleet: { kind: "local", driver: counting }, limits: { minimum: 0, maximum: 3, scaledown_s: 60 } },
    epoch,
    scoredAtOnceMax: 2,
    clock: systemClock,
    log: silentLog,
    metrics,
  });
  await expect(starting).rejects.toThrow("the queue is away");
  expect(looks).toBe(0);
});
