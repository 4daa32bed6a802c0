/** The audit of datasets, under the scheduler's rights where nobody tampers, after rows of every kind have ended or run. */
import { afterAll, beforeAll, expect, test } from "vitest";

import { auditLedger, verifyLedger } from "#ledger/verify.ts";
import type { Database } from "#platform/database.ts";
import { retryByOwner } from "#datasets/control.ts";
import type { DatasetId } from "#contract/ids.ts";

import { openRunFixture, type OutcomeOf, QUOTAS, type RunFixture, succeed } from "../datasets/run-fixture.ts";
import { copyRollouts, failed, newCustomer } from "../support/ledger.ts";
import { auditAfter, tamperWith } from "./tampering.ts";

let fixture: RunFixture;
let db: Database;
/** Rows: 1 succeeded, 2 failed twice with frames delivered, 3 failed at first, 4 expired, then running; 5 and 6 are bad. */
let id: DatasetId;

const first: OutcomeOf = (rollout, video) => {
  if (rollout.dataset_row === 1) return succeed(rollout, video);
  return rollout.dataset_row === 4 ? { kind: "expired" } : failed(rollout.dataset_row === 2 ? 3 : 0);
};
const second: OutcomeOf = (rollout, video) => {
  if (rollout.dataset_row === 4) return null;
  return rollout.dataset_row === 2 ? failed(2) : succeed(rollout, video);
};

beforeAll(async () => {
  fixture = await openRunFixture();
  ({ db } = fixture.database);
  id = await fixture.add({ rows: 4, invalid: 2 });
  const runner = await fixture.start();
  await fixture.until(id, ({ rows_running }) => rows_running === 4);
  await fixture.engine(first);
  await fixture.until(id, ({ state }) => state === "completed");
  await retryByOwner(db, id, fixture.key, new Date(0), QUOTAS);
  await fixture.until(id, ({ rows_running }) => rows_running === 3);
  await fixture.engine(second);
  await fixture.until(id, ({ rows_running }) => rows_running === 1);
  await runner.stop();
  // Ended, and not collected yet.
  await fixture.engine();
});
afterAll(() => fixture.end());

test("books with a dataset in them balance, also for the scheduler, and for one customer", async () => {
  const scheduler = fixture.database.as("scheduler");
  const { checked, problems } = await auditLedger(scheduler);
  expect(problems).toEqual([]);
  expect(checked).toMatchObject({ rollouts: 7, dataset_rows: 6 });
  const other = await newCustomer(db);
  expect((await auditLedger(scheduler, { customer: other.customer_id })).checked.dataset_rows).toBe(0);
  expect((await auditLedger(scheduler, { customer: fixture.key.customer_id })).checked.dataset_rows).toBe(6);
});

const TAMPERINGS: readonly [string, string, RegExp][] = [
  ["what is held", "UPDATE datasets SET held_mils = held_mils - 5", /says held_mils \d+, its rows make it \d+/],
  ["what was charged", "UPDATE datasets SET charged_mils = charged_mils + 1", /says charged_mils/],
  ["what was refunded", "UPDATE datasets SET refunded_mils = refunded_mils + 1", /says refunded_mils/],
  ["frames", "UPDATE datasets SET frames_delivered = frames_delivered + 1", /says frames_delivered/],
  ["the expected frames", "UPDATE datasets SET frames_expected = 0", /says frames_expected 0/],
  [
    "two counters of rows",
    "UPDATE datasets SET rows_failed = 0, rows_succeeded = 3",
    /says rows_succeeded 3, its rows make it 2[^]*says rows_failed 0, its rows make it 1/,
  ],
  [
    "a row and its dataset alike",
    "UPDATE dataset_rows SET charged_mils = charged_mils + 5 WHERE n = 2; UPDATE datasets SET charged_mils = charged_mils + 5",
    /row 2: says \d+ mils charged and \d+ refunded, its rollouts \d+ and \d+\n[^]*says charged_mils/,
  ],
  [
    "a row that says it failed",
    "UPDATE dataset_rows SET state = 'succeeded', error_code = NULL, video_key = 'x' WHERE n = 2",
    /row 2: succeeded, and its rollout did not/,
  ],
  [
    "a row without its video",
    "UPDATE dataset_rows SET state = 'failed', error_code = 'video_lost', video_key = NULL WHERE n = 1",
    /row 1: is failed, and its rollout succeeded and was paid for/,
  ],
  [
    "a rollout taken back without a refund in the ledger",
    `UPDATE rollouts SET status = 'failed', error_code = 'video_lost', result = NULL, frames_delivered = 0, refunded_mils = charge_mils
      WHERE dataset_row = 1 AND status = 'succeeded'`,
    /0 refunds of 0 mils in the ledger, due are \d+/,
  ],
  [
    "a forgotten try",
    "UPDATE dataset_rows SET try = 1 WHERE n = 3",
    /row 3: names a rollout that is not of its latest try/,
  ],
  [
    "a try that nobody paid",
    "UPDATE dataset_rows SET try = 2 WHERE n = 1",
    /row 1: was tried 2 times, and 1 rollouts are of/,
  ],
  [
    "a rollout beside the rows",
    copyRollouts(`'{"id": "rollout_beside"}'`, "WHERE dataset_row = 1"),
    /8 rollouts are of it, its rows were tried 7 times/,
  ],
  [
    "a row's rollout, given to another row",
    "UPDATE rollouts SET dataset_row = 2 WHERE dataset_row = 1",
    /row 1: was tried 1 times, and 0 rollouts/,
  ],
  ["a row, removed", "DELETE FROM dataset_rows WHERE n = 1", /says rows_total 6, its rows make it 5/],
];

test.each(TAMPERINGS)("notices %s that was tampered with", async (_, tampering, problem) => {
  expect((await auditAfter(db, tamperWith(tampering, id))).join("\n")).toMatch(problem);
  expect(await verifyLedger(db)).toEqual([]); // and it was undone
});
