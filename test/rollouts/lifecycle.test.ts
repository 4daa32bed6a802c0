import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, expect, test } from "vitest";

import { type DatasetId, newDatasetId, type RolloutId } from "#contract/ids.ts";
import { ROLLOUT_STATUSES, type RolloutStatus } from "#contract/rollout.ts";
import type { Database } from "#platform/database.ts";
import { canTransition, isTerminal, TAKEN_BACK } from "#rollouts/lifecycle.ts";
import { accept, newCustomer } from "#test/support/ledger.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
});
afterAll(() => database.drop());

test("terminal states are those that nothing leads out of", () => {
  const ends = ROLLOUT_STATUSES.filter((from) => !ROLLOUT_STATUSES.some((to) => canTransition(from, to)));
  expect(ROLLOUT_STATUSES.filter(isTerminal)).toEqual(ends);
  expect(ends).toEqual(["succeeded", "failed", "cancelled", "expired"]);
});

const STEPS = ROLLOUT_STATUSES.flatMap((from) =>
  ROLLOUT_STATUSES.filter((to) => to !== from).map((to) => ({ from, to, allowed: canTransition(from, to) })),
);

test.each(STEPS)("the database and the table agree on $from → $to: $allowed", async ({ from, to, allowed }) => {
  const id = await rolloutIn(from);
  expect(await refusalOf(id, updateTo(to))).toBe(allowed ? null : `rollout ${id} cannot go from ${from} to ${to}`);
});

/** Put there without the trigger; of a dataset only if it says so. */
async function rolloutIn(status: RolloutStatus, datasetId?: DatasetId): Promise<RolloutId> {
  const key = await newCustomer(db);
  if (datasetId) {
    await db.query(
      `INSERT INTO datasets (id, customer_id, key_id, request_id, model, on_invalid) VALUES ($1, $2, $3, 'req_x', 'pusht-small', 'skip')`,
      [datasetId, key.customer_id, key.key_id],
    );
  }
  const { id } = await accept(db, key, { dataset: datasetId ? { id: datasetId, row: 1 } : null });
  await db.transaction(async (tx) => {
    await tx.query("SET LOCAL session_replication_role = replica");
    await tx.query(updateTo(status), [id]);
  });
  return id;
}

const refusalOf = (id: RolloutId, update: string): Promise<string | null> =>
  db.query(update, [id]).then(
    () => null,
    (error: Error) => error.message,
  );

/** Sets a status and what the row's other constraints ask for with it. */
function updateTo(status: RolloutStatus): string {
  const ended = isTerminal(status);
  return `UPDATE rollouts SET status = '${status}',
    attempt = ${status === "queued" ? "0" : "greatest(attempt, 1)"},
    sweep_at = now(),
    frames_delivered = ${ended ? "frames" : "NULL"},
    finished_at = ${ended ? "now()" : "NULL"},
    result = ${status === "succeeded" ? "'{}'" : "NULL"},
    error_code = ${status === "failed" ? "'lost'" : "NULL"}
    WHERE id = $1`;
}

/** The step out of an end, as take-back.ts takes it; `changed` replaces one thing about it. */
function takeBack(changed: Readonly<Record<string, string>> = {}): string {
  const set = {
    status: `'${TAKEN_BACK.to}'`,
    error_code: `'${TAKEN_BACK.error_code}'`,
    result: "NULL",
    frames_delivered: "0",
    refunded_mils: "charge_mils",
    ...changed,
  };
  return `UPDATE rollouts SET ${Object.entries(set)
    .map(([column, value]) => `${column} = ${value}`)
    .join(", ")} WHERE id = $1`;
}

test.each(STEPS)(
  "of a dataset, with its money, $from → $to is allowed as before, but to take a success back",
  async ({ from, to, allowed }) => {
    const id = await rolloutIn(from, newDatasetId(randomBytes));
    const isTakenBack = from === TAKEN_BACK.from && to === TAKEN_BACK.to;
    const update = isTakenBack ? takeBack() : updateTo(to);
    expect(await refusalOf(id, update)).toBe(
      allowed || isTakenBack ? null : `rollout ${id} cannot go from ${from} to ${to}`,
    );
  },
);

test.each<[string, Readonly<Record<string, string>>]>([
  ["under another error code", { error_code: "'lost'" }],
  ["with a part of its money", { frames_delivered: "1", refunded_mils: "charge_mils - 5" }],
  ["without its money", { frames_delivered: "frames", refunded_mils: "0" }],
  ["out of its dataset", { dataset_id: "NULL", dataset_row: "NULL" }],
])("a success is not taken back %s", async (_, changed) => {
  const id = await rolloutIn("succeeded", newDatasetId(randomBytes));
  expect(await refusalOf(id, takeBack(changed))).toBe(`rollout ${id} cannot go from succeeded to failed`);
});

test("a success that nobody's dataset waited for is not taken back, nor moved into a dataset for it", async () => {
  const id = await rolloutIn("succeeded");
  expect(await refusalOf(id, takeBack())).toBe(`rollout ${id} cannot go from succeeded to failed`);
  const of = newDatasetId(randomBytes);
  await rolloutIn("queued", of);
  const moved = takeBack({ dataset_id: `'${of}'`, dataset_row: "2" });
  expect(await refusalOf(id, moved)).toBe(`rollout ${id} cannot go from succeeded to failed`);
});

test("a success that was refunded frames at its end is not taken back: its refund cannot change", async () => {
  const id = await rolloutIn("dispatched", newDatasetId(randomBytes));
  await db.query(updateTo("succeeded").replace("= frames", "= 40, refunded_mils = 45"), [id]);
  expect(await refusalOf(id, takeBack())).toBe(`rollout ${id} cannot go from succeeded to failed`);
});

test("what was taken back stays so, and its refund with it", async () => {
  const id = await rolloutIn("succeeded", newDatasetId(randomBytes));
  expect(await refusalOf(id, takeBack())).toBeNull();
  for (const to of ROLLOUT_STATUSES.filter((status) => status !== "failed")) {
    expect(await refusalOf(id, updateTo(to))).toBe(`rollout ${id} cannot go from failed to ${to}`);
  }
  const cannotChange = `what rollout ${id} was charged, or refunded at its end, cannot change`;
  expect(await refusalOf(id, takeBack({ frames_delivered: "49", refunded_mils: "0" }))).toBe(cannotChange);
});

test("what a rollout was charged cannot be changed, nor what was refunded once it has ended", async () => {
  const key = await newCustomer(db);
  const { id } = await accept(db, key);
  const change = (set: string): Promise<unknown> => db.query(`UPDATE rollouts SET ${set} WHERE id = $1`, [id]);

  await expect(change("price_mils_per_frame = 4, charge_mils = 196")).rejects.toThrow(/cannot change/);
  await expect(change("refunded_mils = 5")).rejects.toThrow(/check constraint/);
  await db.query(
    updateTo("cancelled").replace("frames_delivered = frames", "frames_delivered = 0, refunded_mils = 245"),
    [id],
  );
  await expect(change("refunded_mils = 0, frames_delivered = 49")).rejects.toThrow(/cannot change/);
  await expect(change("attempt = 0")).rejects.toThrow(/cannot go back/);
});
