import { afterAll, beforeAll, describe, expect, test } from "vitest";

import type { Database } from "#platform/database.ts";
import { paceOf, retryAfterS, type Waiting } from "#rollouts/pace.ts";
import { settle } from "#rollouts/settle.ts";
import { accept, cancelled, dispatch, newCustomer, succeeded } from "#test/support/ledger.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
});
afterAll(() => database.drop());

describe("when to look again", () => {
  test.for<[string, Partial<Waiting>, number]>([
    ["what runs is done within seconds", { running_s: 0, position: null }, 1],
    ["also in a long queue's shadow", { running_s: 0.2, position: null, cold_start_s: 70 }, 1],
    ["unless its worker is slow", { running_s: 12.1, position: null, per_second: 9 }, 13],
    ["or very slow", { running_s: 4_000, position: null }, 60],
    ["the next one, at two a second", { position: 1, per_second: 2 }, 1],
    ["the twentieth, at two a second", { position: 20, per_second: 2 }, 10],
    ["rounded up to whole seconds", { position: 5, per_second: 2 }, 3],
    ["the ten thousandth: a minute at most", { position: 10_000, per_second: 2 }, 60],
    ["handed out and not yet begun counts as the next", { position: null, per_second: 0.5 }, 2],
    ["nothing came out lately: about what one takes", { position: 4, per_second: 0 }, 12],
    ["no worker is warm", { position: 1, per_second: 0, cold_start_s: 20 }, 23],
    ["its start is known: until then, and one rollout", { position: 30, starts_in_s: 8, per_second: 2 }, 9],
    ["it begins at once", { position: 30, starts_in_s: 0 }, 3],
    ["and one takes longer to start than a minute", { position: 1, per_second: 0, cold_start_s: 70 }, 60],
  ])("%s", ([, waiting, seconds]) => {
    const nothing = { position: null, starts_in_s: null, running_s: null, per_second: 0, cold_start_s: 0 };
    expect(retryAfterS({ ...nothing, ...waiting })).toBe(seconds);
  });

  test("is a whole number from 1 to 60, and never sooner for one further back", () => {
    for (const per_second of [0, 0.001, 0.3, 1, 7, 1e6]) {
      let before = 0;
      for (let position = 1; position <= 10_000; position = Math.ceil(position * 1.7)) {
        const seconds = retryAfterS({ position, starts_in_s: null, running_s: null, per_second, cold_start_s: 0 });
        expect(Number.isInteger(seconds) && seconds >= 1 && seconds <= 60).toBe(true);
        expect(seconds).toBeGreaterThanOrEqual(before);
        before = seconds;
      }
    }
  });
});

/** So many rollouts of that model that ended, one a second back from now. */
async function ends(model: string, count: number, end: "succeeded" | "cancelled" = "succeeded"): Promise<void> {
  const key = await newCustomer(db);
  for (let n = 0; n < count; n++) {
    const { id } = await accept(db, key, { model });
    await dispatch(db, id);
    await settle(db, id, 1, end === "succeeded" ? succeeded() : cancelled);
    await db.query(`UPDATE rollouts SET finished_at = now() - $2::int * interval '1 second' WHERE id = $1`, [id, n]);
  }
}

test("the pace is what came out of that model within a minute, over the time since the first of it", async () => {
  expect(await paceOf(db, "unheard-of")).toBe(0);
  await ends("steady", 21);
  await ends("other", 3);
  await ends("called-off", 5, "cancelled");
  expect(await paceOf(db, "steady")).toBeGreaterThan(0.9);
  expect(await paceOf(db, "steady")).toBeLessThan(1.1);
  // Two ends in one moment say little about a second.
  await ends("sudden", 1);
  expect(await paceOf(db, "sudden")).toBeLessThanOrEqual(0.2);
  expect(await paceOf(db, "called-off")).toBe(0);
  await db.query("UPDATE rollouts SET finished_at = finished_at - interval '2 minutes' WHERE model = 'steady'");
  expect(await paceOf(db, "steady")).toBe(0);
});
