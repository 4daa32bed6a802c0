import { afterAll, beforeAll, expect, test } from "vitest";

import type { CustomerId } from "#contract/ids.ts";
import type { Database } from "#platform/database.ts";
import { countOwnBacklog, roomForRows } from "#rollouts/backlog-limits.ts";
import { firstInBacklog } from "#rollouts/dispatch.ts";
import { accept, copyRollouts, dispatch, newCustomer } from "#test/support/ledger.ts";
import { plansOn, rowsRead } from "#test/support/plans.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
});
afterAll(() => database.drop());

/** So many queued rollouts of a customer in a lane. */
async function queue(key: Awaited<ReturnType<typeof newCustomer>>, model: string, count: number): Promise<void> {
  const { id } = await accept(db, key, { model, lane: "bulk" });
  await db.query(
    copyRollouts("jsonb_build_object('id', concat(r.id, '_', n))", ", generate_series(2, $2::int) n WHERE r.id = $1"),
    [id, count],
  );
}
const own = (model: string, customer_id: CustomerId, limit = 1_000): Promise<number> =>
  countOwnBacklog(db, { model, lane: "bulk", customer_id }, limit);

test("a customer's own backlog is what waits in that lane of that model, scored or not", async () => {
  const [key, other] = [await newCustomer(db), await newCustomer(db)];
  const model = "own-backlog";
  const first = await accept(db, key, { model, lane: "bulk" });
  const scored = await accept(db, key, { model, lane: "bulk", scored: true });
  await accept(db, key, { model });
  await accept(db, key, { model: "another", lane: "bulk" });
  await accept(db, other, { model, lane: "bulk" });
  expect(await own(model, key.customer_id)).toBe(2);
  const place = { model, lane: "bulk", customer_id: key.customer_id } as const;
  expect((await firstInBacklog(db, place))?.id).toBe(first.id);
  await dispatch(db, first.id);
  expect(await own(model, key.customer_id)).toBe(1);
  expect((await firstInBacklog(db, place))?.id).toBe(scored.id);
  await dispatch(db, scored.id);
  expect(await firstInBacklog(db, place)).toBeNull();
});

test("rows of datasets get half of what may wait, and a few places in line whatever others have there", async () => {
  const [key, other, third] = [await newCustomer(db), await newCustomer(db), await newCustomer(db)];
  const model = "rows-backlog";
  const room = (limits: { per_customer: number; all: number }, who = key): Promise<number> =>
    roomForRows(db, model, who.customer_id, limits);
  expect(await room({ per_customer: 100, all: 1_000 })).toBe(50);
  await queue(key, model, 20);
  expect(await room({ per_customer: 100, all: 1_000 })).toBe(30);
  expect(await room({ per_customer: 40, all: 1_000 })).toBe(0);
  await queue(other, model, 300);
  expect(await room({ per_customer: 1_000, all: 1_000 })).toBe(500 - 320);
  expect(await room({ per_customer: 1_000, all: 400 })).toBe(32 - 20);
  expect(await room({ per_customer: 1_000, all: 400 }, other)).toBe(0);
  expect(await room({ per_customer: 1_000, all: 400 }, third)).toBe(32);
});

test("what is counted is read along the backlog's index, up to the limit", async () => {
  const [key, other] = [await newCustomer(db), await newCustomer(db)];
  const model = "counted-backlog";
  await queue(key, model, 3_000);
  await queue(other, model, 3_000);
  const ended = `'status', 'cancelled', 'finished_at', now(), 'frames_delivered', 0, 'refunded_mils', r.charge_mils`;
  await db.query(
    copyRollouts(`jsonb_build_object('id', concat('rollout_ended', r.id), ${ended})`, "WHERE r.model = $1"),
    [model],
  );
  await db.query("ANALYZE rollouts");
  const nodes = await plansOn(db, (sql) =>
    countOwnBacklog(sql, { model, lane: "bulk", customer_id: key.customer_id }, 1_000),
  );
  expect(rowsRead(nodes)).toBe(1_000);
  expect(await own(model, key.customer_id, 10_000)).toBe(3_000);
});
