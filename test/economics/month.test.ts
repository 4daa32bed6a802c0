/** A month's figures from a real database: what ended, what was taken back, what the workers did, hour by hour. */
import { randomBytes } from "node:crypto";

import { Registry } from "prom-client";
import { afterEach, beforeEach, describe, expect, test } from "vitest";

import { priceFor, setPrice } from "#billing/prices.ts";
import { newDatasetId, type RolloutId } from "#contract/ids.ts";
import { mils } from "#contract/mils.ts";
import { PUBLISHED } from "#economics/cost.ts";
import { readPeriod, rollUp } from "#economics/earnings.ts";
import { economicsJson } from "#economics/json.ts";
import { readMonth } from "#economics/month.ts";
import { monthRange } from "#economics/month-range.ts";
import { decideAlwaysWarm, noteCommitment, noteComplaint, noteReprice, readNoted } from "#economics/noted.ts";
import { billOf } from "#test/support/planner-bill.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { addPoolHours, type PoolSeconds } from "#pools/hours.ts";
import { listPoolEvents } from "#pools/events.ts";
import { noteReady } from "#pools/gaps.ts";
import { settle } from "#rollouts/settle.ts";
import { takeBack } from "#rollouts/take-back.ts";
import { createEconomicsMetrics, lookAtEconomics } from "#scheduler/economics-watch.ts";
import {
  accept,
  assertBooksBalance,
  copyRollouts,
  dispatch,
  failed,
  newCustomer,
  succeeded,
} from "#test/support/ledger.ts";
import { indexesOf, plansOn, rowsRead } from "#test/support/plans.ts";
import { createTestDatabase, silentLog, type TestDatabase, untilWaitingForLocks } from "#test/support/postgres.ts";

const MODEL = "pusht-small";
const RENT = 3.95;
const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;

let database: TestDatabase;
let key: CreatedKey;
let datasets = 0;
beforeEach(async () => {
  database = await createTestDatabase();
  key = await newCustomer(database.db, mils(1_000_000_000));
});
afterEach(async () => {
  // Rollouts of datasets without rows, which the auditor misses with reason.
  await assertBooksBalance(database.db, { madeUp: /its rows were tried 0 times/ });
  await database.drop();
});

/** Hours are over by the database's own clock, so the months under test lie well before the present one. */
const NOW = new Date();
const monthBack = (months: number): string =>
  new Date(Date.UTC(NOW.getUTCFullYear(), NOW.getUTCMonth() - months)).toISOString().slice(0, 7);
const LAST = monthBack(2);
const BEFORE = monthBack(3);
const PRESENT = monthBack(0);
const at = (hours: number, month = LAST): Date => new Date(monthRange(month).from.getTime() + hours * HOUR_MS);

const asGateway = () => database.as("gateway");
const month = (name = LAST, gpuUsdPerHour = RENT) => readMonth(asGateway(), { month: name, gpuUsdPerHour }, NOW);
const roll = (epoch = 0n, limit = 10_000) => rollUp(database.as("scheduler"), { epoch, gpuUsdPerHour: RENT, limit });
const work = (seconds: Partial<PoolSeconds>, when: Date, model = MODEL) =>
  addPoolHours(database.as("scheduler"), 0n, model, when, {
    starting_s: 0,
    ready_s: 0,
    busy_s: 0,
    draining_s: 0,
    cold_starts: 0,
    ...seconds,
  });

interface Ended {
  readonly ended: Date;
  readonly came?: Date;
  readonly model?: string;
  readonly k?: number;
  readonly frames?: number;
  readonly ofDataset?: true;
}

/** A rollout that went all its way through the ledger, and is then dated back. */
async function rollout({
  ended,
  came = ended,
  model = MODEL,
  k = 1,
  frames = 49 * k,
  ofDataset,
}: Ended): Promise<RolloutId> {
  const { db } = database;
  const { id } = await accept(db, key, { model, k, dataset: ofDataset ? await newDataset() : null });
  await dispatch(db, id);
  await settle(db, id, 1, frames === 0 ? failed() : succeeded(frames, 2_620));
  await db.query("UPDATE rollouts SET created_at = $2, finished_at = $3 WHERE id = $1", [id, came, ended]);
  return id;
}

async function newDataset() {
  const id = newDatasetId(randomBytes);
  datasets += 1;
  await database.db.query(
    `INSERT INTO datasets (id, customer_id, key_id, request_id, model, on_invalid) VALUES ($1, $2, $3, 'req_x', $4, 'skip')`,
    [id, key.customer_id, key.key_id, MODEL],
  );
  return { id, row: datasets };
}

const taken = async (id: RolloutId | undefined): Promise<void> => {
  const done = await database.as("runner").transaction((tx) => takeBack(tx, [id ?? ("" as RolloutId)], "lost"));
  expect(done).toMatchObject([{ id }]);
};

/** The same sums over the table itself. */
const exact = async () =>
  await database.db.query(
    `SELECT sum(frames_delivered)::float8 AS frames, sum(charge_mils - refunded_mils)::bigint AS revenue_mils,
            sum(refunded_mils)::bigint AS refunded_mils FROM rollouts`,
  );

const gapFrames = async () => (await month()).pools.map(({ model, gap_frames }) => [model, gap_frames]);

/** What the leader's metrics then say. */
const look = async (now: Date, gpuUsdPerHour = RENT): Promise<string> => {
  const registry = new Registry();
  const metrics = createEconomicsMetrics(registry);
  const options = { db: database.as("scheduler"), epoch: 0n, gpuUsdPerHour, metrics, log: silentLog };
  await lookAtEconomics({ ...options, clock: { now: () => now.getTime() } });
  return await registry.metrics();
};

const recorded = async (): Promise<Record<string, unknown>[]> => {
  const events = await listPoolEvents(database.db, { model: null, kinds: ["reprice"], since: null, limit: 100 });
  return events.toReversed().map(({ by, detail }) => ({ by, ...detail }));
};

const warm = async () => {
  const [pool] = (await month(PRESENT)).pools;
  return Object.fromEntries((pool?.warm.triggers ?? []).map(({ trigger, met }) => [trigger, met]));
};

describe("a month", () => {
  test("has the published cost basis where a hundred rollouts took what it says: $0.000105 a frame and 79 %", async () => {
    for (let n = 0; n < 4; n++) await rollout({ ended: at(5), k: 25 });
    const { starting_s, busy_s } = { starting_s: PUBLISHED.cold_start_s, busy_s: 100 * PUBLISHED.rollout_s };
    await work({ starting_s, ready_s: busy_s, busy_s, cold_starts: 1 }, at(5));
    const { pools, total, published } = await month();
    const [pool] = pools;
    expect(pools).toHaveLength(1);
    expect(pool).toMatchObject({
      model: MODEL,
      rollouts: 4,
      frames: 4_900,
      revenue_mils: 24_500n,
      refunded_mils: 0n,
      engine_wall_s_per_rollout: 2.62,
      cold_starts: 1,
      working_s: 400,
      starting_s: 70,
      idle_s: 0,
    });
    expect(pool?.cost.cost_usd_per_frame).toBeCloseTo(published.cost_usd_per_frame ?? 0, 12);
    expect(pool?.cost.cost_usd_per_frame?.toFixed(6)).toBe("0.000105");
    expect(pool?.cost.margin?.toFixed(2)).toBe("0.79");
    expect(pool?.floor.kind).toBe("healthy");
    expect(pool?.reprice).toEqual([]);
    expect(total).toMatchObject({ frames: 4_900, revenue_mils: 24_500n, cost: { rent_usd: pool?.cost.rent_usd } });
  });

  test("counts what was delivered and charged, refunds apart, pool by pool, from midnight to midnight in UTC", async () => {
    await rollout({ ended: at(0) });
    await rollout({ ended: new Date(monthRange(LAST).until.getTime() - 1), frames: 40 });
    await rollout({ ended: at(700), frames: 0 });
    await rollout({ ended: at(3), model: "other", k: 8 });
    await rollout({ ended: new Date(at(0).getTime() - 1) });
    await rollout({ ended: monthRange(LAST).until });
    for (let round = 0; round < 2; round++) {
      const { pools, total } = await month();
      expect(pools).toMatchObject([
        { model: "other", rollouts: 1, frames: 392, revenue_mils: 1_960n, refunded_mils: 0n, cost: { rent_usd: 0 } },
        { model: MODEL, rollouts: 2, frames: 89, revenue_mils: 445n, refunded_mils: 290n },
      ]);
      expect(total).toMatchObject({ rollouts: 3, frames: 481, revenue_mils: 2_405n });
      // The second time from the summed hours.
      await roll();
    }
    const [summed] = await database.db.query("SELECT FROM pool_earnings");
    expect(summed).toBeDefined();
  });

  test("does not call frames free whose workers nobody recorded", async () => {
    await rollout({ ended: at(1) });
    await rollout({ ended: at(1), model: "other" });
    await work({ ready_s: 10, busy_s: 10 }, at(1), "other");
    const {
      pools: [other, unknown],
      total,
    } = await month();
    for (const figures of [unknown, total]) {
      expect(figures).toMatchObject({ floor: { kind: "no record" }, cost: { cost_usd_per_frame: null, margin: null } });
    }
    expect(other?.cost.margin).toBeGreaterThan(0);
  });

  test("is refused where it is none", async () => {
    for (const wrong of ["2026-13", "2026-1", "1999-01", "november", "2026-11-01"]) {
      await expect(month(wrong)).rejects.toThrow(/expected one such as 2026-11/);
    }
    await expect(month(monthBack(-1))).rejects.toThrow("has not begun (UTC)");
  });

  test("as JSON has its money as numbers and its moments as text", async () => {
    await rollout({ ended: at(1) });
    const json = economicsJson(await month());
    expect(JSON.parse(JSON.stringify(json))).toMatchObject({
      month: LAST,
      from: at(0).toISOString(),
      complete: true,
      pools: [{ model: MODEL, revenue_mils: 245, cost: { revenue_usd: 0.0245 } }],
    });
  });
});

describe("summing hours", () => {
  test("changes no figure, whatever ends, is refunded or taken back in between", async () => {
    const ids: RolloutId[] = [];
    for (let step = 0; step < 24; step++) {
      // Ends come hour by hour, and the sums follow, at half their pace.
      ids.push(await rollout({ ended: at(step), frames: step % 7 === 6 ? 0 : 49, ofDataset: true }));
      if (step % 2 === 1) await roll(0n, 1);
      // Now of an hour that is summed, now of one that is not.
      if (step % 8 === 3) await taken(ids[(step - 3) / 2]);
      if (step % 8 === 7) await taken(ids[step]);
      const { frames, revenue_mils, refunded_mils } = (await month()).total;
      expect([{ frames, revenue_mils, refunded_mils }]).toEqual(await exact());
    }
    const open = await database.db.query("SELECT FROM earnings_hours WHERE rolled_at IS NULL");
    const summed = await database.db.query("SELECT FROM earnings_hours WHERE rolled_at IS NOT NULL");
    expect([open.length > 0, summed.length > 0]).toEqual([true, true]);
  });

  test("sees a success that is being taken back meanwhile, in an hour that was never summed and in one that was", async () => {
    const ids = [await rollout({ ended: at(2), ofDataset: true }), await rollout({ ended: at(2), ofDataset: true })];
    for (const [index, id] of ids.entries()) {
      let summed: Promise<number> | undefined;
      // The second time, something else has the hour summed anew.
      if (index === 1) await database.db.query("UPDATE earnings_hours SET rolled_at = NULL");
      await database.as("runner").transaction(async (tx) => {
        await takeBack(tx, [id], "lost");
        summed = roll();
        await untilWaitingForLocks(database.db, 1);
      });
      await summed;
      expect((await month()).total).toMatchObject({
        frames: 49 * (1 - index),
        refunded_mils: 245n * BigInt(index + 1),
      });
    }
  });

  test("leaves the last hour alone, where ends may still be on their way", async () => {
    await rollout({ ended: new Date(Date.now() - 90 * 60_000) });
    await rollout({ ended: new Date() });
    await roll();
    const [latest] = await database.db.query<{ age_ms: number }>(
      "SELECT (extract(epoch FROM now() - max(hour)) * 1000)::float8 AS age_ms FROM earnings_hours",
    );
    // The hour that ended an hour ago at the least began two hours ago at the least.
    expect(latest?.age_ms ?? Number.POSITIVE_INFINITY).toBeGreaterThanOrEqual(2 * HOUR_MS);
  });

  test("is the leader's alone", async () => {
    await rollout({ ended: at(2) });
    await database.db.query("UPDATE scheduler_leader SET epoch = 7");
    expect(await roll(6n)).toBe(0);
    expect(await database.db.query("SELECT FROM earnings_hours")).toEqual([]);
    expect(await roll(7n, 3)).toBe(3);
  });

  test("lets a month be read without its rollouts, and before that each of them once, hour by hour along the index", async () => {
    const { db } = database;
    await rollout({ ended: at(0) });
    const copies = 5_000;
    const copy = `jsonb_build_object('id', 'copy_' || n, 'finished_at', r.finished_at + n * interval '8 minutes')`;
    await db.query(copyRollouts(copy, `CROSS JOIN generate_series(1, ${copies}) AS n`));
    await db.query("ANALYZE");
    // 5,000 × 8 minutes are 28 days.
    const read = () => plansOn(db, (sql) => readMonth(sql, { month: LAST, gpuUsdPerHour: RENT }, NOW));
    const before = await read();
    expect(indexesOf(before)).toContain("rollouts_finished");
    // By means of each hour, which EXPLAIN rounds.
    expect(rowsRead(before)).toBeLessThan(1.01 * copies);
    expect((await month()).total.rollouts).toBe(copies + 1);
    await roll();
    expect(rowsRead(await read())).toBe(0);
    expect((await month()).total.rollouts).toBe(copies + 1);
    await db.query("DELETE FROM rollouts WHERE id LIKE 'copy_%'"); // nobody paid for them
  });

  test("keeps the rent of its hour: another one later changes no month that is over", async () => {
    await rollout({ ended: at(2) });
    await work({ ready_s: 3_600, busy_s: 1_800, starting_s: 360, draining_s: 40, cold_starts: 1 }, at(2));
    await roll();
    const { pools } = await month(LAST, 100);
    expect(pools[0]).toMatchObject({ working_s: 1_800, starting_s: 360, idle_s: 1_840, gpu_usd_per_hour: RENT });
    expect(pools[0]?.cost.rent_usd).toBeCloseTo((4_000 / 3_600) * RENT, 9);
  });
});

describe("cold gaps", () => {
  test("are from the last ready worker to the next, and what came in them is counted", async () => {
    const scheduler = database.as("scheduler");
    const ready = (count: number, hours: number) => noteReady(scheduler, 0n, MODEL, count, at(hours));
    await ready(0, 1);
    await ready(0, 2); // a new leader says it again
    await ready(1, 3);
    await ready(4, 4);
    await ready(0, 6);
    for (const came of [0.5, 1, 2.9, 3, 5, 6.5]) await rollout({ came: at(came), ended: at(8) });
    await rollout({ came: at(2), ended: at(8), frames: 0 }); // nothing was delivered
    await rollout({ came: at(2), ended: at(8), model: "other" });
    expect(await gapFrames()).toEqual([
      ["other", 0],
      [MODEL, 3 * 49],
    ]);
    await roll();
    expect(await gapFrames()).toEqual([
      ["other", 0],
      [MODEL, 3 * 49],
    ]);
    const gaps = await database.db.query("SELECT began_at, ended_at FROM pool_gaps ORDER BY began_at");
    expect(gaps).toEqual([
      { began_at: at(1), ended_at: at(3) },
      { began_at: at(6), ended_at: null },
    ]);
  });

  test("are noted by the leader alone", async () => {
    await noteReady(database.as("scheduler"), 9n, MODEL, 0, at(1));
    expect(await database.db.query("SELECT FROM pool_gaps")).toEqual([]);
  });
});

describe("triggers", () => {
  test("a margin below the floor is recorded once a month, with the ways out", async () => {
    await rollout({ ended: at(5), k: 4 });
    await work({ ready_s: 300, busy_s: 100, cold_starts: 1 }, at(5));
    const { floor, cost } = (await month()).pools[0] ?? {};
    expect(cost?.margin).toBeLessThan(0.7);
    expect(floor?.kind).toBe("below the floor");
    // Few frames tell nothing while the month runs: one cold start decides.
    const early = await look(at(6));
    expect(early).toContain('dream_pool_margin_below_floor{model="pusht-small"} 0');
    expect(early).toMatch(/dream_pool_margin\{model="pusht-small"\} -2\.3588/);
    expect(early).toMatch(/dream_pool_cost_usd_per_frame\{model="pusht-small"\} 0\.0016/);
    expect(await recorded()).toEqual([]);
    const over = new Date(monthRange(LAST).until.getTime() + 2 * HOUR_MS);
    await look(over);
    await look(new Date(over.getTime() + HOUR_MS));
    expect(await recorded()).toMatchObject([
      { by: "scheduler", trigger: "margin_floor", month: LAST, floor: 0.7, options: [{}, {}, { notice_days: 30 }] },
    ]);
  });

  test("another rent is recorded in the month in which it begins, and in no other", async () => {
    await rollout({ ended: at(5, BEFORE) });
    await roll();
    await database.db.query("DELETE FROM pool_earnings");
    await database.db.query("DELETE FROM earnings_hours WHERE hour >= $1", [at(0)]);
    await rollout({ ended: at(5) });
    await rollUp(database.as("scheduler"), { epoch: 0n, gpuUsdPerHour: 2.5, limit: 10_000 });
    await look(at(10 * 24), 2.5);
    await look(at(11 * 24), 2.5);
    expect(await recorded()).toEqual([
      { by: "scheduler", month: LAST, trigger: "rent", from_usd_per_hour: 3.95, to_usd_per_hour: 2.5 },
    ]);
    expect((await month(PRESENT, 2.5)).pools.flatMap(({ reprice }) => reprice)).toEqual([]);
  });

  test("a fifth less a frame is shared with the customers, half and half", async () => {
    for (const [name, busy_s] of [
      [BEFORE, 4_000],
      [LAST, 3_200],
    ] as const) {
      for (let n = 0; n < 10; n++) await rollout({ ended: at(5 + n, name), k: 100 });
      await work({ ready_s: busy_s, busy_s }, at(5, name));
    }
    const [first] = (await month()).pools[0]?.reprice ?? [];
    if (first?.trigger !== "cost_drop") throw new Error(`expected a drop of the cost, got ${first?.trigger}`);
    expect(first.drop).toBeCloseTo(0.2, 9);
    const saved = (800 * RENT) / 3_600 / 49_000;
    expect(first.price_mils_per_frame).toBeCloseTo(5 - (saved / 2) * 10_000, 9);
    // A little less than a fifth is none.
    await work({ ready_s: 1, busy_s: 1 }, at(5));
    expect((await month()).pools[0]?.reprice).toEqual([]);
  });

  test("a year's commitment above a million frames is recorded for each customer, competition by an operator's word", async () => {
    const other = await newCustomer(database.db);
    const note = { model: MODEL, by: "grace", months: 12, asks_warm: false, note: "contract 7" };
    await noteCommitment(database.db, { ...note, customer: key.customer_id, frames_per_month: 1_000_001 });
    await noteCommitment(database.db, { ...note, customer: other.customer_id, frames_per_month: 1_500_000 });
    await noteCommitment(database.db, { ...note, customer: "cus_short", frames_per_month: 9_000_000, months: 11 });
    await work({}, NOW);
    await look(at(15 * 24, PRESENT));
    await look(at(16 * 24, PRESENT));
    const customers = (await recorded()).map(({ trigger, customer }) => `${String(trigger)} ${String(customer)}`);
    expect(customers).toHaveLength(2);
    expect(new Set(customers)).toEqual(
      new Set([`committed_use ${key.customer_id}`, `committed_use ${other.customer_id}`]),
    );
    const competition = {
      model: MODEL,
      by: "grace",
      trigger: "competition" as const,
      note: "4 mils elsewhere",
      at: NOW,
    };
    expect(await noteReprice(database.db, competition)).toBe(true);
    expect(await noteReprice(database.db, { ...competition, by: "ada" })).toBe(false);
    expect((await recorded()).at(-1)).toMatchObject({ by: "grace", trigger: "competition", note: "4 mils elsewhere" });
  });

  test("a complaint counts from a customer who pays, until an operator has switched the pool off again", async () => {
    const { db } = database;
    await work({}, NOW);
    const stranger = await newCustomer(db);
    const complain = (customer: string) =>
      noteComplaint(db, { model: MODEL, by: "grace", customer, note: "ticket 17" });
    expect(await complain(stranger.customer_id)).toEqual({ paying: false });
    expect(await complain(key.customer_id)).toEqual({ paying: false });
    expect(await warm()).toMatchObject({ complaint: false });
    await rollout({ ended: at(5) });
    expect(await complain(key.customer_id)).toEqual({ paying: true });
    expect(await warm()).toEqual({ complaint: true, "gap-frames": false, commitment: false });
    const decision = { model: MODEL, by: "grace", note: "costs too much", facts: {} };
    await decideAlwaysWarm(db, { ...decision, workers: 1, trigger: "complaint" });
    expect(await db.query("SELECT always_warm_workers, set_by, why FROM pool_settings")).toEqual([
      { always_warm_workers: 1, set_by: "grace", why: "complaint: costs too much" },
    ]);
    await decideAlwaysWarm(db, { ...decision, workers: null, trigger: null });
    expect(await warm()).toMatchObject({ complaint: false });
    const events = await listPoolEvents(db, { model: MODEL, kinds: null, since: null, limit: 2 });
    expect(events).toMatchObject([
      { kind: "always_warm_off", by: "grace", detail: { workers: null } },
      { kind: "always_warm_on", by: "grace", detail: { workers: 1, trigger: "complaint" } },
    ]);
    await expect(decideAlwaysWarm(db, { ...decision, workers: 65, trigger: "complaint" })).rejects.toThrow(/1 to 64/);
  });

  test("a commitment counts above two million frames with a warm pool as part of it, while it lasts", async () => {
    const { db } = database;
    await work({}, NOW);
    const commit = (frames_per_month: number, asks_warm: boolean) =>
      noteCommitment(db, {
        model: MODEL,
        by: "g",
        customer: "cus_a",
        frames_per_month,
        months: 1,
        asks_warm,
        note: "x",
      });
    await commit(2_000_000, true);
    expect(await warm()).toMatchObject({ commitment: false });
    await commit(2_000_001, false);
    expect(await warm()).toMatchObject({ commitment: false });
    await commit(2_000_001, true);
    expect(await warm()).toMatchObject({ commitment: true });
    await db.query("UPDATE pool_events SET at = now() - interval '40 days'");
    expect(await warm()).toMatchObject({ commitment: false });
    await commit(2_000_001, true);
    await commit(0, true);
    expect(await warm()).toMatchObject({ commitment: false });
  });
});

test("a planner's hour is charged as the pricing page reckons it: 14,112,000 frames, $7,056", async () => {
  const { db } = database;
  const price = await priceFor(db, key.customer_id);
  const decisions = 10 * 3_600;
  const { charge_mils, frames } = await accept(db, key, { k: 8 });
  const bill = billOf({ k: 8, frames: 49, decisions_per_s: 10, seconds: 3_600 }, price);
  expect(BigInt(frames) * BigInt(decisions)).toBe(14_112_000n);
  expect(charge_mils * BigInt(decisions)).toBe(70_560_000n);
  expect(bill).toEqual({ frames: 14_112_000n, charge: 70_560_000n });
});

test("a rise that a month asks for is refused before its 30 days' notice", async () => {
  const rise = {
    customer_id: null,
    mils_per_frame: 8,
    note: "the margin is below the floor",
    operator: "grace",
    override_reason: null,
  };
  await expect(setPrice(database.db, { ...rise, effective_from: new Date(Date.now() + 29 * DAY_MS) })).rejects.toThrow(
    /30 days' notice/,
  );
  await setPrice(database.db, { ...rise, effective_from: new Date(Date.now() + 31 * DAY_MS) });
});

test("a period of hours has the mean of their rents", async () => {
  await database.db.query(
    "INSERT INTO earnings_hours (hour, rolled_at, gpu_usd_per_hour) VALUES ($1, now(), 2), ($2, now(), 4)",
    [at(1), at(2)],
  );
  await work({ ready_s: 300 }, at(1));
  await work({ ready_s: 100 }, at(2));
  const [pool] = await readPeriod(asGateway(), { ...monthRange(LAST), gpuUsdPerHour: 9 });
  expect(pool).toMatchObject({ model: MODEL, idle_s: 400, gpu_usd_per_hour: 2.5 });
});

test("what operators noted is found without reading a month of a pool's changes of size", async () => {
  const { db } = database;
  await db.query(
    `INSERT INTO pool_events (model, kind, by, at)
     SELECT 'pool', 'scaled', 'scheduler', now() - n * interval '1 minute' FROM generate_series(1, 5000) AS n`,
  );
  await db.query("ANALYZE pool_events");
  const nodes = await plansOn(db, (sql) => readNoted(sql, new Date()));
  expect(nodes.filter((node) => node["Relation Name"] === "pool_events")).not.toEqual([]);
  expect(nodes.map((node) => node["Node Type"])).not.toContain("Seq Scan");
});
