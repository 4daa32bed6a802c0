import { afterAll, beforeAll, expect, test } from "vitest";

import { PredictJob } from "#contract/jobs.ts";
import { ASYNC_RUN_MAX_MS, QUEUE_POSITION_MAX } from "#contract/limits.ts";
import type { Database, Sql } from "#platform/database.ts";
import { markDispatched, predictJobOf, readBacklog, readInFlight, readScoredBacklog } from "#rollouts/dispatch.ts";
import { queuePosition } from "#rollouts/find.ts";
import { type Leadership, tryLead } from "#rollouts/leader.ts";
import { settle } from "#rollouts/settle.ts";
import { accept, cancelled, newCustomer, succeeded } from "#test/support/ledger.ts";
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

test("the backlog of a lane is first come, first served", async () => {
  const key = await newCustomer(db);
  const model = "backlog";
  const bulk = await accept(db, key, { model, lane: "bulk" });
  const one = await accept(db, key, { model });
  const two = await accept(db, key, { model });
  await accept(db, key, { model: "other" });

  expect((await readBacklog(db, model, "realtime", 10)).map(({ id }) => id)).toEqual([one.id, two.id]);
  expect((await readBacklog(db, model, "realtime", 1)).map(({ id }) => id)).toEqual([one.id]);
  expect((await readBacklog(db, model, "bulk", 10)).map(({ id }) => id)).toEqual([bulk.id]);
});

test("a lane's backlog is read without looking through the other's, however long", async () => {
  const key = await newCustomer(db);
  const model = "long-backlog";
  const bulk = await accept(db, key, { model, lane: "bulk" });
  await db.query(
    `INSERT INTO rollouts SELECT (jsonb_populate_record(r, jsonb_build_object('id', concat('rollout_copy', n)))).*
       FROM rollouts r, generate_series(1, 5000) n WHERE r.id = $1`,
    [bulk.id],
  );
  const realtime = await accept(db, key, { model });
  await db.query("ANALYZE rollouts");
  for (const lane of ["realtime", "bulk"] as const) {
    let plan = "";
    const explained: Sql = {
      async query<Row>(text: string, params?: readonly unknown[]) {
        plan = JSON.stringify(await db.query(`EXPLAIN (ANALYZE, FORMAT JSON) ${text}`, params));
        return db.query<Row>(text, params);
      },
    };
    const found = await readBacklog(explained, model, lane, 200);
    expect(found).toHaveLength(lane === "realtime" ? 1 : 200);
    expect(found.some(({ id }) => id === realtime.id)).toBe(lane === "realtime");
    expect(plan).toContain("rollouts_backlog");
    expect(plan).not.toMatch(/Rows Removed by Filter|"Node Type":"(?:Incremental )?Sort"/);
  }
});

test("of a customer's scored rollouts as many may go as bring it to the limit, over all models", async () => {
  const [one, two] = [await newCustomer(db), await newCustomer(db)];
  const [model, other] = ["scored", "scored-elsewhere"];
  const scored = (key: typeof one, name = model) => accept(db, key, { model: name, lane: "bulk", scored: true });
  const ready = async (atOnceMax: number, name = model) =>
    (await readScoredBacklog(db, name, atOnceMax, 100)).map(({ id }) => id);
  const [a, b, , elsewhere] = [await scored(one), await scored(one), await scored(one), await scored(one, other)];
  const x = await scored(two);
  const plain = await accept(db, one, { model, lane: "bulk" });

  expect(await ready(2)).toEqual([a.id, b.id, x.id]);
  expect((await readScoredBacklog(db, model, 2, 1)).map(({ id }) => id)).toEqual([a.id]);
  expect((await readBacklog(db, model, "bulk", 10)).map(({ id }) => id)).toEqual([plain.id]);
  expect(await ready(2, other)).toEqual([elsewhere.id]);

  const [job] = (await markDispatched(db, leader.epoch, [elsewhere.id])).map(predictJobOf);
  expect(job).toMatchObject({ lane: "bulk", scored: true });
  expect(predictJobOf(plain)).not.toHaveProperty("scored");
  expect(await ready(2)).toEqual([a.id, x.id]);
  expect(await ready(1)).toEqual([x.id]);
  await markDispatched(db, leader.epoch, [a.id, b.id]); // more than the limit, which was higher yesterday
  expect(await ready(2)).toEqual([x.id]);
  for (const { id } of [elsewhere, a, b]) await settle(db, id, null, cancelled);
  expect(await ready(2)).toHaveLength(2);
});

test("a long backlog of scored rollouts is not looked through, neither for them nor for others", async () => {
  const [busy, other] = [await newCustomer(db), await newCustomer(db)];
  const model = "long-scored-backlog";
  const scored = await accept(db, busy, { model, lane: "bulk", scored: true });
  await db.query(
    `INSERT INTO rollouts SELECT (jsonb_populate_record(r, jsonb_build_object('id', concat('rollout_scored', n)))).*
       FROM rollouts r, generate_series(1, 5000) n WHERE r.id = $1`,
    [scored.id],
  );
  const plain = await accept(db, other, { model, lane: "bulk" });
  const late = await accept(db, other, { model, lane: "bulk", scored: true });
  await db.query("ANALYZE rollouts");
  let rowsRead = 0;
  const explained: Sql = {
    async query<Row>(text: string, params?: readonly unknown[]) {
      const plan = JSON.stringify(await db.query(`EXPLAIN (ANALYZE, FORMAT JSON) ${text}`, params));
      const numbers = (field: string) =>
        [...plan.matchAll(new RegExp(`"${field}":([0-9.]+)`, "g"))].map(([, n]) => Number(n));
      rowsRead = Math.max(...numbers("Actual Rows"), ...numbers("Rows Removed by Filter"));
      return db.query<Row>(text, params);
    },
  };
  expect(await readBacklog(explained, model, "bulk", 200)).toMatchObject([{ id: plain.id }]);
  expect(rowsRead).toBeLessThan(10);
  expect(await readScoredBacklog(explained, model, 2, 200)).toHaveLength(3);
  expect(rowsRead).toBeLessThan(100);
  expect(await queuePosition(explained, plain)).toBe(QUEUE_POSITION_MAX);
  expect(await queuePosition(explained, late)).toBe(QUEUE_POSITION_MAX);
  expect(rowsRead).toBeLessThanOrEqual(QUEUE_POSITION_MAX);
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
    { id: one.id, status: "dispatched", attempt: 1 },
    { id: two.id, status: "dispatched", attempt: 1 },
    { id: bulk.id, status: "dispatched", attempt: 1 },
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
  expect(await readBacklog(db, model, "realtime", 10)).toEqual([]);
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
