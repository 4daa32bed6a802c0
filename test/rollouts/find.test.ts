import { afterAll, beforeAll, expect, test } from "vitest";

import { QUEUE_POSITION_MAX, REDELIVERY_WINDOW_MS } from "#contract/limits.ts";
import type { Database, Sql } from "#platform/database.ts";
import {
  countQueued,
  findRollout,
  findUndelivered,
  hasUndelivered,
  markDelivered,
  queuePosition,
} from "#rollouts/find.ts";
import { latencyOf } from "#rollouts/latency.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import { settle } from "#rollouts/settle.ts";
import { accept, copyRollouts, dispatch, failed, fingerprint, newCustomer, succeeded } from "#test/support/ledger.ts";
import { plansOn, rowsRead } from "#test/support/plans.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
});
afterAll(() => database.drop());

test("finds a customer's own rollout, and nobody else's", async () => {
  const [owner, other] = [await newCustomer(db), await newCustomer(db)];
  const rollout = await accept(db, owner);
  expect(await findRollout(db, rollout.id, owner.customer_id)).toEqual(rollout);
  expect(await findRollout(db, rollout.id, other.customer_id)).toBeNull();
});

test("a paid video that did not arrive is found by its payload for 15 minutes, until it is delivered", async () => {
  const [key, other] = [await newCustomer(db), await newCustomer(db)];
  const payload = fingerprint("payload");
  const now = new Date();
  const find = (at = now): ReturnType<typeof findUndelivered> => findUndelivered(db, key.customer_id, payload, 1, at);

  const unattended = await accept(db, key, { fingerprint: payload });
  await dispatch(db, unattended.id);
  await settle(db, unattended.id, 1, succeeded());
  expect(await find()).toBeNull(); // it is fetched by id, so that it cannot get lost on its way
  expect(await hasUndelivered(db, key.customer_id, now)).toBe(false);

  const rollout = await accept(db, key, { fingerprint: payload, waiter_id: "gateway_test" });
  expect(await find()).toBeNull(); // still running
  await dispatch(db, rollout.id);
  await settle(db, rollout.id, 1, succeeded());

  expect((await find())?.id).toBe(rollout.id);
  expect(await hasUndelivered(db, key.customer_id, now)).toBe(true);
  expect(await find(new Date(now.getTime() + REDELIVERY_WINDOW_MS + 1_000))).toBeNull();
  expect(await findUndelivered(db, key.customer_id, fingerprint("other"), 1, now)).toBeNull();
  expect(await findUndelivered(db, key.customer_id, payload, 2, now)).toBeNull();
  expect(await findUndelivered(db, other.customer_id, payload, 1, now)).toBeNull();
  expect(await hasUndelivered(db, other.customer_id, now)).toBe(false);

  await markDelivered(db, rollout.id);
  const delivered = await findRollout(db, rollout.id, key.customer_id);
  await markDelivered(db, rollout.id);
  expect(await findRollout(db, rollout.id, key.customer_id)).toEqual(delivered); // the first time counts
  expect(await find()).toBeNull();
  expect(await hasUndelivered(db, key.customer_id, now)).toBe(false);
});

test("a refunded rollout is never given away as undelivered", async () => {
  const key = await newCustomer(db);
  const payload = fingerprint("failed payload");
  const rollout = await accept(db, key, { fingerprint: payload, waiter_id: "gateway_test" });
  await settle(db, rollout.id, null, failed());
  expect(await findUndelivered(db, key.customer_id, payload, 1, new Date())).toBeNull();
});

test("the place in the queue counts the same model only, and whoever waits goes before bulk work", async () => {
  const key = await newCustomer(db);
  const model = "queue-model";
  const bulk = await accept(db, key, { model, lane: "bulk" });
  const first = await accept(db, key, { model });
  await accept(db, key, { model: "another-model" });
  const second = await accept(db, key, { model });

  expect(await Promise.all([first, second, bulk].map((rollout) => queuePosition(db, rollout)))).toEqual([1, 2, 3]);
  await dispatch(db, first.id);
  expect(await queuePosition(db, first)).toBeNull();
  expect(await queuePosition(db, bulk)).toBe(2);
  expect((await countQueued(db)).get(model)).toBe(2);
  expect((await countQueued(db)).get("unheard-of")).toBeUndefined();
});

test("the place is in the fair order: behind one rollout of each other customer for each of its own before it", async () => {
  const [busy, other, weighty] = [await newCustomer(db), await newCustomer(db), await newCustomer(db)];
  const model = "fair-model";
  const take = (key: typeof busy): Promise<Rollout> => accept(db, key, { model, lane: "bulk" });
  const many: Rollout[] = [];
  for (let n = 0; n < 5; n++) many.push(await take(busy));
  const few = [await take(other), await take(other)];
  const places = (rollouts: readonly Rollout[]): Promise<(number | null)[]> =>
    Promise.all(rollouts.map((rollout) => queuePosition(db, rollout)));
  expect(await places(many)).toEqual([1, 3, 5, 6, 7]);
  expect(await places(few)).toEqual([2, 4]);

  await db.query("UPDATE customers SET dispatch_weight = 2 WHERE id = $1", [weighty.customer_id]);
  const double = [await take(weighty), await take(weighty), await take(weighty)];
  expect(await places(double)).toEqual([3, 4, 7]);
  expect(await places(many)).toEqual([1, 5, 8, 9, 10]);
});

test("where as many customers wait as places are counted, the place is the last: nobody looks at each of them", async () => {
  const key = await newCustomer(db);
  const model = "crowded-model";
  const { id } = await accept(db, key, { model, lane: "bulk" });
  const first = { id, model };
  const crowd = (from: number, to: number): Promise<unknown> =>
    db.transaction(async (tx) => {
      await tx.query(
        "INSERT INTO customers (id) SELECT concat('cus_crowd', n) FROM generate_series($1::int, $2::int) n",
        [from, to],
      );
      await tx.query(
        copyRollouts(
          "jsonb_build_object('id', concat(r.id, n), 'customer_id', concat('cus_crowd', n), 'created_at', now())",
          ", generate_series($2::int, $3::int) n WHERE r.id = $1",
        ),
        [id, from, to],
      );
    });
  await crowd(1, QUEUE_POSITION_MAX - 2);
  await db.query("ANALYZE rollouts");
  expect(await queuePosition(db, first)).toBe(1);
  await crowd(QUEUE_POSITION_MAX - 1, QUEUE_POSITION_MAX + 500);
  const nodes = await plansOn(db, async (sql) => {
    expect(await queuePosition(sql, first)).toBe(QUEUE_POSITION_MAX);
  });
  expect(rowsRead(nodes)).toBeLessThanOrEqual(QUEUE_POSITION_MAX + 20);
});

test("percentiles are of what was waited for and succeeded in the last 24 hours, and null without any", async () => {
  const key = await newCustomer(db);
  const model = "timed-model";
  const now = new Date();
  expect(await latencyOf(db, model, now)).toEqual({
    engine_wall_ms: { p50: null, p99: null, count: 0 },
    request_ms: { p50: null, p99: null, count: 0 },
  });

  for (let n = 1; n <= 100; n++) {
    const rollout = await accept(db, key, { model });
    await dispatch(db, rollout.id);
    await settle(db, rollout.id, 1, succeeded(49, n * 10));
  }
  const lost = await accept(db, key, { model });
  await settle(db, lost.id, null, failed());

  const latency = await latencyOf(db, model, now);
  expect(latency.engine_wall_ms).toEqual({ p50: 500, p99: 990, count: 100 });
  expect(latency.request_ms).toMatchObject({ p50: expect.any(Number), count: 100 });
  expect(latency.request_ms.p50).toBeLessThanOrEqual(latency.request_ms.p99 ?? 0);
  // However many there are, no more than the latest so many are looked at.
  expect((await latencyOf(db, model, now, 40)).engine_wall_ms).toEqual({ p50: 800, p99: 1000, count: 40 });
  // What nobody waits for is slow by design, and a server that does nothing else has no latency to show.
  for (const of of [model, "bulk-model"]) {
    const bulk = await accept(db, key, { model: of, lane: "bulk" });
    await dispatch(db, bulk.id);
    await settle(db, bulk.id, 1, succeeded(49, 60_000));
  }
  expect((await latencyOf(db, model, now)).engine_wall_ms).toEqual({ p50: 500, p99: 990, count: 100 });
  expect((await latencyOf(db, "bulk-model", now)).request_ms).toEqual({ p50: null, p99: null, count: 0 });
  const tomorrow = new Date(now.getTime() + 25 * 3_600_000);
  expect((await latencyOf(db, model, tomorrow)).engine_wall_ms.count).toBe(0);
});

test("latencies are found without looking through what was bulk", async () => {
  const key = await newCustomer(db);
  const model = "busy-model";
  for (const lane of ["realtime", "bulk"] as const) {
    const rollout = await accept(db, key, { model, lane });
    await dispatch(db, rollout.id);
    await settle(db, rollout.id, 1, succeeded(49, 10));
    if (lane === "realtime") continue;
    await db.query(
      copyRollouts(
        "jsonb_build_object('id', concat('rollout_copy', n))",
        ", generate_series(1, 5000) n WHERE r.id = $1",
      ),
      [rollout.id],
    );
  }
  await db.query("ANALYZE rollouts");
  let plan = "";
  const explained: Sql = {
    async query<Row>(text: string, params?: readonly unknown[]) {
      plan = JSON.stringify(await db.query(`EXPLAIN ${text}`, params));
      return db.query<Row>(text, params);
    },
  };
  expect((await latencyOf(explained, model, new Date())).engine_wall_ms).toEqual({ p50: 10, p99: 10, count: 1 });
  expect(plan).toContain("rollouts_latencies");
});
