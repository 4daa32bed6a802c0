import { afterAll, beforeAll, expect, test } from "vitest";

import { ROLLOUT_STATUSES, type RolloutStatus } from "#contract/rollout.ts";
import type { Database } from "#platform/database.ts";
import { canTransition, isTerminal } from "#rollouts/lifecycle.ts";
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
  const key = await newCustomer(db);
  const { id } = await accept(db, key);
  // Into `from` without the trigger, then the step under test with it.
  await db.transaction(async (tx) => {
    await tx.query("SET LOCAL session_replication_role = replica");
    await tx.query(updateTo(from), [id]);
  });
  const refusal = await db.query(updateTo(to), [id]).then(
    () => null,
    (error: Error) => error.message,
  );
  expect(refusal).toBe(allowed ? null : `rollout ${id} cannot go from ${from} to ${to}`);
});

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
