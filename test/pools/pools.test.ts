/** What the leader writes of its pools, as its own database role, and what others read of it. */
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";

import type { Database } from "#platform/database.ts";
import { deleteOldPoolEvents, listPoolEvents, recordPoolEvent } from "#pools/events.ts";
import { addPoolHours } from "#pools/hours.ts";
import { type Pool, poolStateOf, readPools, writePool } from "#pools/pool.ts";
import { readPoolSettings, setAlwaysWarm } from "#pools/settings.ts";
import { lookAtPool, succeededLately } from "#pools/work.ts";
import { settle } from "#rollouts/settle.ts";
import { tryLead } from "#rollouts/leader.ts";

import { accept, copyRollouts, dispatch, failed, newCustomer, succeeded } from "../support/ledger.ts";
import { plansOn, rowsRead } from "../support/plans.ts";
import { poolRow, readPoolHours } from "../support/pools.ts";
import { createTestDatabase, type TestDatabase } from "../support/postgres.ts";

const MODEL = "pusht-small";
const POOL = poolRow({
  model: MODEL,
  desired: 2,
  reason: { kind: "busy", workers: 2 },
  ready: 1,
  starting: 1,
  waiting_rollouts: 3,
  waiting_samples: 6,
  active_rollouts: 1,
  active_samples: 2,
  waiting_work_s: 12.5,
  samples_per_worker: 4,
  looked_at: new Date("2026-11-22T12:00:00Z"),
});
const SECONDS = { starting_s: 1, ready_s: 10, busy_s: 4, draining_s: 0.5, cold_starts: 1 };

const since = (at: Date | null) => ({ since: at, scoredAtOnceMax: 2 });

let database: TestDatabase;
let owner: Database;
let scheduler: Database;
let gateway: Database;
let epoch: bigint;

beforeAll(async () => {
  database = await createTestDatabase();
  owner = database.db;
  scheduler = database.as("scheduler");
  gateway = database.as("gateway");
});
/** A new term; whatever was written in the one before is older. */
beforeEach(async () => {
  // The lock of the term before goes when the server has noticed that its connection is closed.
  const leadership = await vi.waitUntil(() => tryLead(scheduler, "test"), { timeout: 10_000 });
  ({ epoch } = leadership);
  await leadership.resign();
});
afterAll(() => database.drop());

describe("the row of a pool", () => {
  test("is what the latest look of the leader wrote, and a gateway reads it as it was written", async () => {
    expect(await writePool(scheduler, epoch, POOL)).toBe(true);
    const later: Pool = {
      ...POOL,
      desired: 0,
      seconds_per_sample: 0.7,
      crash_loop: "exit code 3",
      always_warm_workers: 1,
    };
    expect(await writePool(scheduler, epoch, later)).toBe(true);
    expect(await readPools(gateway)).toMatchObject([later]);
  });

  test("of a leader whose term is over changes nothing", async () => {
    await writePool(scheduler, epoch, POOL);
    expect(await writePool(scheduler, epoch - 1n, { ...POOL, desired: 9 })).toBe(false);
    expect(await addPoolHours(scheduler, epoch - 1n, MODEL, new Date(), SECONDS)).toBe(false);
    const event = { model: MODEL, kind: "scaled", detail: {}, by: "scheduler" } as const;
    expect(await recordPoolEvent(scheduler, epoch - 1n, event)).toBe(false);
    expect(await readPools(gateway)).toMatchObject([{ desired: 2 }]);
    expect(await readPoolHours(gateway, new Date(0), new Date(Date.now() + 1000))).toEqual([]);
    expect(await listPoolEvents(gateway, { model: null, kinds: null, since: null, limit: 10 })).toEqual([]);
  });

  test("tells clients a state as long as somebody looks after the pool", () => {
    const lookedMs = POOL.looked_at.getTime();
    const of = (ready: number, starting: number) => poolStateOf({ ...POOL, ready, starting }, lookedMs + 5_000);
    expect([of(1, 0), of(1, 1), of(0, 1), of(0, 0)]).toEqual(["warm", "warm", "warming", "cold"]);
    expect(poolStateOf(POOL, lookedMs + 60_000)).toBe("cold");
    expect(poolStateOf(undefined, lookedMs)).toBe("cold");
  });
});

const at = (time: string): Date => new Date(`2026-11-22T${time}Z`);

test("seconds of workers add up by the hour in which they passed", async () => {
  for (const time of ["10:59:59", "11:00:00", "11:30:00"])
    await addPoolHours(scheduler, epoch, MODEL, at(time), SECONDS);
  await addPoolHours(scheduler, epoch, "other", at("11:00:00"), SECONDS);
  const hours = await readPoolHours(gateway, at("10:00:00"), at("12:00:00"));
  expect(hours).toEqual(
    [
      { model: MODEL, hour: at("10:00:00"), ...SECONDS },
      { model: "other", hour: at("11:00:00"), ...SECONDS },
      { model: MODEL, hour: at("11:00:00"), starting_s: 2, ready_s: 20, busy_s: 8, draining_s: 1, cold_starts: 2 },
    ].toSorted((a, b) => a.hour.getTime() - b.hour.getTime() || (a.model < b.model ? -1 : 1)),
  );
  expect(await readPoolHours(gateway, at("11:00:00"), at("11:00:00"))).toEqual([]);
});

test("events are found by model, kind and age, newest first; scaling is forgotten after a month, decisions after a year", async () => {
  const ages = { scaled: [31, 29, 1], complaint: [401, 399, 31, 1] } as const;
  const now = new Date();
  for (const kind of ["scaled", "complaint"] as const) {
    for (const days of ages[kind]) {
      await recordPoolEvent(owner, null, { model: MODEL, kind, detail: { days }, by: "ann" });
      await owner.query(
        "UPDATE pool_events SET at = $1::timestamptz - $2::int * interval '1 day' WHERE id = (SELECT max(id) FROM pool_events)",
        [now, days],
      );
    }
  }
  expect(await deleteOldPoolEvents(scheduler, epoch - 1n, now, 10)).toBe(0);
  expect(await deleteOldPoolEvents(scheduler, epoch, now, 10)).toBe(2);
  const left = await listPoolEvents(gateway, { model: MODEL, kinds: null, since: null, limit: 10 });
  expect(left.map(({ kind, detail }) => [kind, detail["days"]])).toEqual([
    ["complaint", 1],
    ["complaint", 31],
    ["complaint", 399],
    ["scaled", 1],
    ["scaled", 29],
  ]);
  const since = new Date(now.getTime() - 40 * 86_400_000);
  const complaints = await listPoolEvents(gateway, { model: MODEL, kinds: ["complaint"], since, limit: 1 });
  expect(complaints).toMatchObject([{ kind: "complaint", detail: { days: 1 }, by: "ann" }]);
  expect(await listPoolEvents(gateway, { model: "other", kinds: null, since: null, limit: 10 })).toEqual([]);
});

test("an operator's decision replaces the one before, and is not a scheduler's to take", async () => {
  const decision = { model: MODEL, by: "ann", why: "a customer's complaint" };
  await setAlwaysWarm(owner, { ...decision, workers: 2 });
  await setAlwaysWarm(owner, { ...decision, workers: 1 });
  expect(await readPoolSettings(scheduler)).toMatchObject([{ model: MODEL, always_warm_workers: 1, set_by: "ann" }]);
  await setAlwaysWarm(owner, { ...decision, workers: null, why: "it was withdrawn" });
  expect(await readPoolSettings(owner)).toMatchObject([{ always_warm_workers: null, why: "it was withdrawn" }]);
  await expect(setAlwaysWarm(scheduler, { ...decision, workers: 3 })).rejects.toThrow("permission denied");
});

test("a look counts what waits, what is dispatched and, once it is settled for good, what ended", async () => {
  const key = await newCustomer(owner);
  const [, second, third] = [
    await accept(owner, key),
    await accept(owner, key, { k: 4 }),
    await accept(owner, key, { scored: true, lane: "bulk", route: "rollouts" }),
  ];
  for (const { id } of [second, third]) await dispatch(owner, id);
  const first = await lookAtPool(scheduler, MODEL, since(null));
  expect(first).toMatchObject({
    queued: { rollouts: 1, samples: 1, frames: 48 },
    // A scored one runs twice.
    dispatched: { rollouts: 2, samples: 5, frames: 4 * 48 + 2 * 48 },
    succeeded: { rollouts: 0, samples: 0, frames: 0 },
    ended_frames: 0,
  });
  await settle(owner, second.id, 1, succeeded(4 * 49));
  await settle(owner, third.id, 1, failed());
  expect(await lookAtPool(scheduler, MODEL, since(first.until))).toMatchObject({
    ended_frames: 0,
    dispatched: { rollouts: 0 },
  });
  // As if it had been a while ago.
  await owner.query("UPDATE rollouts SET finished_at = finished_at - interval '3 s' WHERE finished_at IS NOT NULL");
  const past = new Date(first.until.getTime() - 5_000);
  const last = await lookAtPool(scheduler, MODEL, since(past));
  expect(last).toMatchObject({ succeeded: { rollouts: 1, samples: 4, frames: 4 * 48 }, ended_frames: 6 * 48 });
  // Each is counted once.
  expect(await lookAtPool(scheduler, MODEL, since(last.until))).toMatchObject({ ended_frames: 0 });
  expect(await lookAtPool(scheduler, "other", since(past))).toMatchObject({ queued: { rollouts: 0 }, ended_frames: 0 });
  expect([await succeededLately(scheduler, MODEL, 60), await succeededLately(scheduler, MODEL, 1)]).toEqual([
    true,
    false,
  ]);
});

test("scored rollouts that may not begin yet are no work: no worker would have anything to do", async () => {
  const [one, other] = [await newCustomer(owner), await newCustomer(owner)];
  const model = "scored";
  const scored = { model, lane: "bulk", k: 1, scored: true } as const;
  const first = await accept(owner, one, scored);
  for (let n = 0; n < 4; n++) await accept(owner, one, scored);
  await accept(owner, other, scored);
  await accept(owner, other, { model, lane: "bulk" });
  const queued = async () => (await lookAtPool(scheduler, model, since(null))).queued;
  expect(await queued()).toEqual({ rollouts: 2 + 1 + 1, samples: 4, frames: (2 + 1) * 2 * 48 + 48 });
  await dispatch(owner, first.id);
  expect(await queued()).toMatchObject({ rollouts: 1 + 1 + 1 });
  // Of all models together.
  const elsewhere = await accept(owner, one, { ...scored, model: "scored-too" });
  await dispatch(owner, elsewhere.id);
  expect(await queued()).toMatchObject({ rollouts: 0 + 1 + 1 });
});

test("a look reads what is there and what just ended, whatever ended before", async () => {
  const { id } = await accept(owner, await newCustomer(owner));
  // Ended one a second for hours.
  await owner.query(
    copyRollouts(
      `jsonb_build_object('id', 'rollout_' || md5(n::text), 'status', 'failed', 'attempt', 1, 'error_code', 'lost',
         'frames_delivered', 0, 'refunded_mils', r.charge_mils, 'finished_at', now() - n * interval '1 s')`,
      ", generate_series(5, 10000) n WHERE r.id = $1",
    ),
    [id],
  );
  await owner.query("ANALYZE rollouts");
  const seconds = 60;
  const nodes = await plansOn(owner, (sql) => lookAtPool(sql, MODEL, since(new Date(Date.now() - seconds * 1000))));
  expect(rowsRead(nodes)).toBeLessThan(seconds + 10);
  const lately = await plansOn(owner, (sql) => succeededLately(sql, MODEL, seconds));
  expect(rowsRead(lately)).toBeLessThan(seconds + 10);
});
