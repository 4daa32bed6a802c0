import { afterAll, beforeAll, expect, test } from "vitest";

import type { RolloutId } from "#contract/ids.ts";
import { PredictJob } from "#contract/jobs.ts";
import { ASYNC_RUN_MAX_MS, QUEUE_POSITION_MAX } from "#contract/limits.ts";
import type { Lane } from "#contract/rollout.ts";
import type { Database } from "#platform/database.ts";
import {
  countBacklog,
  markDispatched,
  predictJobOf,
  readBacklog,
  readDispatched,
  readHeads,
  readInFlight,
} from "#rollouts/dispatch.ts";
import { queuePosition } from "#rollouts/find.ts";
import { type Leadership, tryLead } from "#rollouts/leader.ts";
import { settle } from "#rollouts/settle.ts";
import { accept, cancelled, copyRollouts, expired, newCustomer, succeeded } from "#test/support/ledger.ts";
import { indexesOf, type PlanNode, plansOn, rowsRead } from "#test/support/plans.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";
import { Compile } from "typebox/compile";

let database: TestDatabase;
let db: Database;
let leader: Leadership;
beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
  const leadership = await tryLead(db, "test");
  if (!leadership) throw new Error("nobody else is there to lead");
  leader = leadership;
});
afterAll(async () => {
  await leader.resign();
  await database.drop();
});

const lineOf = (model: string, lane: Lane, scoredAtOnceMax = 2) => ({ model, lane, now: new Date(), scoredAtOnceMax });
const heads = (model: string, lane: Lane, scoredAtOnceMax = 2): ReturnType<typeof readHeads> =>
  readHeads(db, lineOf(model, lane, scoredAtOnceMax));
const read = (model: string, lane: Lane, customers: readonly string[], each = 10): ReturnType<typeof readBacklog> =>
  readBacklog(db, { ...lineOf(model, lane), customers, each });
/** Rollouts that wait were found by the backlog's index, and those that are dispatched by theirs. */
const expectAlongBacklog = (nodes: readonly PlanNode[]): void => {
  const scans = nodes.filter((node) => node["Relation Name"] === "rollouts").map((node) => node["Node Type"]);
  expect(scans.length).toBeGreaterThan(0);
  expect(scans).not.toContain("Seq Scan");
  expect(indexesOf(nodes)).toContain("rollouts_backlog");
  expect(indexesOf(nodes)).not.toContain("rollouts_listed");
};
const idsOf = (rows: readonly { readonly id: string }[]): string[] => rows.map(({ id }) => id);

test("the backlog of a lane is read by customer, each one's first come, first served", async () => {
  const [key, other] = [await newCustomer(db), await newCustomer(db)];
  const model = "backlog";
  const bulk = await accept(db, key, { model, lane: "bulk" });
  const one = await accept(db, key, { model, k: 8, actions_per_candidate: 16 });
  const two = await accept(db, key, { model });
  const others = await accept(db, other, { model });
  await accept(db, key, { model: "other" });
  await db.query("UPDATE customers SET dispatch_weight = 3 WHERE id = $1", [other.customer_id]);

  const own = await read(model, "realtime", [key.customer_id]);
  expect(idsOf(own)).toEqual([one.id, two.id]);
  expect(own[0]).toEqual({
    id: one.id,
    customer_id: key.customer_id,
    queued_ms: expect.closeTo(one.created_at.getTime(), -1),
    k: 8,
    frames: 128,
    weight: 1,
  });
  expect(idsOf(await read(model, "realtime", [key.customer_id], 1))).toEqual([one.id]);
  expect(idsOf(await read(model, "bulk", [key.customer_id, other.customer_id]))).toEqual([bulk.id]);
  expect(await read(model, "realtime", [other.customer_id])).toMatchObject([{ id: others.id, weight: 3 }]);

  expect(idsOf(await heads(model, "realtime")).sort()).toEqual([one.id, others.id].sort());
  expect(idsOf(await heads(model, "bulk"))).toEqual([bulk.id]);
  expect(await Promise.all([2, 10].map((limit) => countBacklog(db, model, "realtime", limit)))).toEqual([2, 3]);
  expect(await countBacklog(db, model, "bulk", 10)).toBe(1);
});

test("leaves out those whose deadline has passed: the sweep ends them", async () => {
  const key = await newCustomer(db);
  const model = "late";
  await accept(db, key, { model, deadline_at: new Date(Date.now() - 1) });
  expect(await heads(model, "realtime")).toEqual([]);
  const next = await accept(db, key, { model });
  expect(idsOf(await heads(model, "realtime"))).toEqual([next.id]);
  expect(idsOf(await read(model, "realtime", [key.customer_id]))).toEqual([next.id]);
});

test("one customer's night of work hides nobody, and what is read does not grow with it", async () => {
  const model = "long-backlog";
  const [bulky, ...small] = await Promise.all(Array.from({ length: 21 }, () => newCustomer(db)));
  if (!bulky) throw new Error("no customer");
  for (const key of [bulky, ...small]) await accept(db, key, { model, lane: "bulk" });
  await db.query(
    copyRollouts(
      "jsonb_build_object('id', concat('rollout_', r.customer_id, n))",
      ", generate_series(1, 5000) n WHERE r.model = $1 AND (r.customer_id = $2 OR n < 10)",
    ),
    [model, bulky.customer_id],
  );
  const waitedFor = await accept(db, bulky, { model });
  await db.query("ANALYZE rollouts");

  for (const lane of ["realtime", "bulk"] as const) {
    const customers = lane === "bulk" ? 21 : 1;
    const nodes = await plansOn(db, async (sql) => {
      const found = await readHeads(sql, lineOf(model, lane));
      expect(new Set(found.map(({ customer_id }) => customer_id)).size).toBe(customers);
    });
    expectAlongBacklog(nodes);
    expect(rowsRead(nodes)).toBeCloseTo(customers, 0); // a plan says the mean of its loops
  }
  const keys = [bulky, ...small].map(({ customer_id }) => customer_id);
  const rows = await plansOn(db, (sql) => readBacklog(sql, { ...lineOf(model, "bulk"), customers: keys, each: 8 }));
  expectAlongBacklog(rows);
  expect(rowsRead(rows)).toBeCloseTo(21 * 8, 0);
  expect(idsOf(await read(model, "realtime", keys))).toEqual([waitedFor.id]);
});

test("the next leader finds who was given what: what runs, and what ended of late, by when it was dispatched", async () => {
  const [key, other] = [await newCustomer(db), await newCustomer(db)];
  const model = "replayed";
  const lane = "bulk";
  const [ended, runs, expiredThere, waits] = [
    await accept(db, key, { model, lane }),
    await accept(db, other, { model, lane, k: 2 }),
    await accept(db, key, { model, lane }),
    await accept(db, key, { model, lane }),
  ];
  await accept(db, key, { model });
  await markDispatched(db, leader.epoch, [runs.id]);
  await markDispatched(db, leader.epoch, [expiredThere.id, ended.id]);
  await settle(db, ended.id, 1, succeeded());
  await settle(db, expiredThere.id, 1, expired);
  await settle(db, waits.id, null, cancelled);
  expect(await readDispatched(db, model, lane, 1_000)).toMatchObject([
    { id: runs.id, customer_id: other.customer_id, frames: 96, dispatched_ms: expect.any(Number) },
    { id: ended.id, customer_id: key.customer_id, frames: 48 },
  ]);
  expect(await readDispatched(db, model, "realtime", 1_000)).toEqual([]);
  expect(await readDispatched(db, model, lane, 0)).toHaveLength(1);
});

test("of a customer's scored rollouts as many may go as bring it to the limit, over all models", async () => {
  const [one, two] = [await newCustomer(db), await newCustomer(db)];
  const [model, other] = ["scored", "scored-elsewhere"];
  const scored = (key: typeof one, name = model) => accept(db, key, { model: name, lane: "bulk", scored: true });
  const ready = async (atOnceMax: number, name = model, each = 100) => {
    const customers = (await heads(name, "bulk", atOnceMax)).map(({ customer_id }) => customer_id);
    const rows = await readBacklog(db, { ...lineOf(name, "bulk", atOnceMax), customers, each });
    return [one, two].flatMap(({ customer_id }) => idsOf(rows.filter((row) => row.customer_id === customer_id)));
  };
  const [a, b, , elsewhere] = [await scored(one), await scored(one), await scored(one), await scored(one, other)];
  const x = await scored(two);
  const plain = await accept(db, one, { model, lane: "bulk" });

  expect(await ready(2)).toEqual([a.id, b.id, plain.id, x.id]);
  expect(await ready(2, model, 1)).toEqual([a.id, x.id]);
  expect(await ready(1)).toEqual([a.id, plain.id, x.id]);
  expect(await ready(2, other)).toEqual([elsewhere.id]);
  expect(await heads(model, "realtime")).toEqual([]);
  // It is dreamt twice.
  expect(await read(model, "bulk", [one.customer_id], 3)).toMatchObject([
    { frames: 96 },
    { frames: 96 },
    { frames: 48 },
  ]);

  const [job] = (await markDispatched(db, leader.epoch, [elsewhere.id])).map(predictJobOf);
  expect(job).toMatchObject({ lane: "bulk", scored: true });
  expect(predictJobOf(plain)).not.toHaveProperty("scored");
  expect(await ready(2)).toEqual([a.id, plain.id, x.id]);
  expect(idsOf(await heads(model, "bulk", 1)).sort()).toEqual([plain.id, x.id].sort());
  expect(await ready(1)).toEqual([plain.id, x.id]);
  await markDispatched(db, leader.epoch, [a.id, b.id]); // more than the limit, which was higher yesterday
  expect(await ready(2)).toEqual([plain.id, x.id]);
  await settle(db, plain.id, null, cancelled);
  expect(await ready(2)).toEqual([x.id]);
  for (const { id } of [elsewhere, a, b]) await settle(db, id, null, cancelled);
  expect(await ready(2)).toHaveLength(2);
});

test("a long backlog of scored rollouts is not looked through, neither for them nor for others", async () => {
  const [busy, other] = [await newCustomer(db), await newCustomer(db)];
  const model = "long-scored-backlog";
  const scored = await accept(db, busy, { model, lane: "bulk", scored: true });
  await db.query(
    copyRollouts(
      "jsonb_build_object('id', concat('rollout_scored', n))",
      ", generate_series(1, 5000) n WHERE r.id = $1",
    ),
    [scored.id],
  );
  const plain = await accept(db, other, { model, lane: "bulk" });
  const late = await accept(db, other, { model, lane: "bulk", scored: true });
  const last = await accept(db, busy, { model, lane: "bulk" });
  await markDispatched(db, leader.epoch, [scored.id, "rollout_scored1" as RolloutId]);
  await db.query("ANALYZE rollouts");

  const customers = [busy.customer_id, other.customer_id];
  const nodes = await plansOn(db, async (sql) => {
    expect(idsOf(await readHeads(sql, lineOf(model, "bulk"))).sort()).toEqual([plain.id, last.id].sort());
    const rows = await readBacklog(sql, { ...lineOf(model, "bulk"), customers, each: 200 });
    expect(idsOf(rows).sort()).toEqual([plain.id, late.id, last.id].sort());
  });
  expectAlongBacklog(nodes);
  expect(rowsRead(nodes)).toBeLessThan(20);

  const places = await plansOn(db, async (sql) => {
    expect(await queuePosition(sql, plain)).toBe(2);
    expect(await queuePosition(sql, late)).toBe(4);
    expect(await queuePosition(sql, last)).toBe(QUEUE_POSITION_MAX);
  });
  expectAlongBacklog(places);
  expect(rowsRead(places)).toBeLessThanOrEqual(QUEUE_POSITION_MAX + 30);
});

test("dispatching counts the attempt, and takes only what is still queued", async () => {
  const key = await newCustomer(db);
  const model = "marking";
  const [one, two, gone, bulk] = [
    await accept(db, key, { model }),
    await accept(db, key, { model, k: 8 }),
    await accept(db, key, { model }),
    await accept(db, key, { model, lane: "bulk", k: 4 }),
  ];
  await settle(db, gone.id, null, cancelled);

  const marked = await markDispatched(db, leader.epoch, [bulk.id, two.id, gone.id, one.id]);
  expect(marked.map(({ id, status, attempt }) => ({ id, status, attempt }))).toEqual([
    { id: bulk.id, status: "dispatched", attempt: 1 },
    { id: two.id, status: "dispatched", attempt: 1 },
    { id: one.id, status: "dispatched", attempt: 1 },
  ]);
  expect(await markDispatched(db, leader.epoch, [one.id])).toEqual([]);
  expect(await readInFlight(db, model)).toEqual({
    realtime: { rollouts: 2, samples: 9 },
    bulk: { rollouts: 1, samples: 4 },
  });
  expect(await readInFlight(db, "another")).toEqual({
    realtime: { rollouts: 0, samples: 0 },
    bulk: { rollouts: 0, samples: 0 },
  });
  expect(await heads(model, "realtime")).toEqual([]);
});

test("two dispatchers at once dispatch each rollout once", async () => {
  const key = await newCustomer(db);
  const ids = (await Promise.all(Array.from({ length: 20 }, () => accept(db, key)))).map(({ id }) => id);
  const rounds = await Promise.all([
    markDispatched(db, leader.epoch, ids),
    markDispatched(db, leader.epoch, ids.toReversed()),
  ]);
  expect(
    rounds
      .flat()
      .map(({ id }) => id)
      .sort(),
  ).toEqual(ids.sort());
});

test("a leader whose term is over dispatches nothing", async () => {
  const key = await newCustomer(db);
  const rollout = await accept(db, key);
  expect(await markDispatched(db, leader.epoch - 1n, [rollout.id])).toEqual([]);
  expect(await markDispatched(db, leader.epoch + 1n, [rollout.id])).toEqual([]);
  expect(await markDispatched(db, leader.epoch, [rollout.id])).toHaveLength(1);
});

test("what nobody waits for gets time to run on top of the time to begin; a caller's patience is as it was", async () => {
  const key = await newCustomer(db);
  const soon = new Date(Date.now() + 10_000);
  const late = new Date(Date.now() + 24 * 3_600_000);
  const [patient, hurried, waitedFor] = [
    await accept(db, key, { deadline_at: late }),
    await accept(db, key, { deadline_at: soon }),
    await accept(db, key, { deadline_at: soon, waiter_id: "gateway_test" }),
  ];
  const ids = [patient.id, hurried.id, waitedFor.id];
  const marked = new Map((await markDispatched(db, leader.epoch, ids)).map((row) => [row.id, row]));
  expect(marked.get(patient.id)).toMatchObject({
    start_by: late,
    deadline_at: new Date(late.getTime() + ASYNC_RUN_MAX_MS),
  });
  expect(marked.get(waitedFor.id)?.deadline_at).toEqual(soon);
  const run = marked.get(hurried.id);
  expect(run?.deadline_at.getTime()).toBe(soon.getTime() + ASYNC_RUN_MAX_MS);
  // Its worker is told the same, and that of a caller's nothing of it.
  expect(run && predictJobOf(run)).toMatchObject({
    start_by_ms: soon.getTime(),
    deadline_ms: run?.deadline_at.getTime(),
  });
  const caller = marked.get(waitedFor.id);
  expect(caller?.start_by).toBeNull();
  expect(caller && predictJobOf(caller)).not.toHaveProperty("start_by_ms");
});

test("the job carries references and the debited mils, and is valid on the wire", async () => {
  const key = await newCustomer(db);
  const { id } = await accept(db, key, { k: 2 });
  const [rollout] = await markDispatched(db, leader.epoch, [id]);
  if (!rollout) throw new Error("not dispatched");

  const job = predictJobOf(rollout);
  expect(Compile(PredictJob).Check(job)).toBe(true);
  expect(job).toMatchObject({
    rollout_id: id,
    attempt: 1,
    debited_mils: "490",
    frame_key: `rollouts/${id}/start_frame.png`,
    actions_key: `rollouts/${id}/actions.f32`,
    deadline_ms: rollout.deadline_at.getTime(),
    alone: false,
  });
  expect(await settle(db, id, job.attempt, succeeded(98))).toMatchObject({ settled: true });
});
