/** A retry of many rows: put back some at a time, by whichever process, and the dataset does not end meanwhile. */
import { isDeepStrictEqual } from "node:util";

import { afterEach, beforeEach, expect, test, vi } from "vitest";

import type { DatasetId } from "#contract/ids.ts";
import { callOffSome } from "#datasets/call-off.ts";
import { cancelByOwner, retryByOwner } from "#datasets/control.ts";
import { finishDataset } from "#datasets/finish.ts";
import { putSomeBack } from "#datasets/retry.ts";
import { endTurn, takeTurn, type Turn } from "#datasets/turn.ts";

import { silentLog } from "../support/postgres.ts";
import { assertAddsUp, openRunFixture, QUOTAS, type RunFixture } from "./run-fixture.ts";

/** Two and a quarter of what one transaction puts back, or the most that a dataset may have; then it tells how long it took. */
const LONG = process.env["DATASETS"] === "long";
const ROWS = LONG ? 250_000 : 4_500;
const INVALID = 3;
const ROWS_OF_A_STEP = 2_000;
const INSERTED_AT_ONCE = 10_000;
const LIMIT_MS = LONG ? 5 * 60_000 : 15_000;
vi.setConfig(LONG ? { testTimeout: 15 * 60_000, hookTimeout: 60_000 } : {});

let fixture: RunFixture;
beforeEach(async () => {
  fixture = await openRunFixture();
});
afterEach(() => fixture.end());

const runner = () => fixture.database.as("runner");
const retry = (id: DatasetId) => retryByOwner(fixture.database.as("gateway"), id, fixture.key, new Date(0), QUOTAS);
const finish = (turn: Turn) =>
  finishDataset(turn, { db: runner(), blobs: fixture.blobs, workDir: fixture.folder }, new AbortController().signal);

/** Tells the slowest of the steps so far. */
function stopwatch(what: string): <T>(step: () => Promise<T>) => Promise<T> {
  const times: number[] = [];
  return async (step) => {
    const began = performance.now();
    const done = await step();
    times.push(performance.now() - began);
    const [total, most] = [times.reduce((sum, ms) => sum + ms, 0), Math.max(...times)].map(Math.round);
    if (LONG) console.log(`${what}: ${times.length} steps, ${total} ms in all, ${most} ms the slowest`);
    return done;
  };
}

async function take(id: DatasetId, name: string): Promise<Turn> {
  const dataset = await takeTurn(runner(), { name, leaseMs: 0, without: [] });
  expect(dataset?.id).toBe(id);
  return { dataset_id: id, name };
}

const PENDING = ["pending"];
/** Of five rows two failed, one was cancelled, one expired, one succeeded. */
const ENDED = ["failed", "cancelled", "expired", "succeeded", "failed"];

/** A running dataset whose rows are in these states, in turns; their numbers have gaps, as those of a manifest may. */
async function filled(states: readonly string[]): Promise<DatasetId> {
  const { db } = fixture.database;
  const id = await fixture.add({ rows: 1, invalid: INVALID });
  for (let from = 1; from < ROWS; from += INSERTED_AT_ONCE) {
    await db.query(
      `INSERT INTO dataset_rows (dataset_id, n, row_id, source, params, num_actions,
                                 state, finished_at, error_code, try, frames, video_key)
       SELECT dataset_id, 10 + g + 3 * (g / 1000), 'r-' || g, source, params, num_actions, s.state,
              CASE WHEN s.state <> 'pending' THEN now() END, CASE WHEN s.state = 'failed' THEN 'engine_failed' END, 1, 3,
              CASE WHEN s.state = 'succeeded' THEN 'datasets/a/b.mp4' END
         FROM dataset_rows r, generate_series($2::int, $3::int) g,
              LATERAL (SELECT ($4::text[])[g % cardinality($4::text[]) + 1] AS state) s
        WHERE r.dataset_id = $1 AND r.n = 1`,
      [id, from, Math.min(from + INSERTED_AT_ONCE, ROWS) - 1, states],
    );
  }
  await db.query(
    `UPDATE datasets d
        SET rows_total = c.total, rows_pending = c.pending, rows_failed = c.failed, rows_cancelled = c.cancelled,
            rows_expired = c.expired, rows_succeeded = c.succeeded
       FROM (SELECT count(*) AS total,
                    count(*) FILTER (WHERE state = 'pending') AS pending,
                    count(*) FILTER (WHERE state = 'failed') AS failed,
                    count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
                    count(*) FILTER (WHERE state = 'expired') AS expired,
                    count(*) FILTER (WHERE state = 'succeeded') AS succeeded
               FROM dataset_rows WHERE dataset_id = $1) c
      WHERE d.id = $1`,
    [id],
  );
  await assertAddsUp(fixture, id);
  return id;
}

/** All of its rows have ended. */
async function ended(state: "completed" | "paused"): Promise<DatasetId> {
  const id = await filled(ENDED);
  await fixture.database.db.query(
    `WITH first AS (UPDATE dataset_rows SET state = 'expired' WHERE dataset_id = $1 AND n = 1)
     UPDATE datasets
        SET rows_pending = 0, rows_expired = rows_expired + 1, state = $2,
            pause_reason = CASE WHEN $2 = 'paused' THEN 'requested' END,
            resting_since = CASE WHEN $2 = 'paused' THEN now() END,
            finished_at = CASE WHEN $2 = 'completed' THEN now() END
      WHERE id = $1`,
    [id, state],
  );
  await assertAddsUp(fixture, id);
  return id;
}

test("is asked for at once, done in steps, taken over by another process, and never looks like the end", async () => {
  const id = await ended("completed");
  const before = await fixture.read(id);
  const rowsBefore = new Map((await fixture.rows(id)).map((row) => [row.n, row]));
  expect(await retry(id)).toMatchObject({ state: "running", finished_at: null, retry_after: 0, rows_pending: 0 });

  // Nothing waits and nothing runs, and yet it is not over.
  const first = await take(id, "turn_first");
  expect(await finish(first)).toBe(false);
  expect(await putSomeBack(first, runner())).toBe(true);
  await assertAddsUp(fixture, id);
  const begun = await fixture.read(id);
  expect(begun.rows_pending).toBeGreaterThan(0);
  expect(begun.rows_pending).toBeLessThanOrEqual(ROWS_OF_A_STEP);

  // That process is gone. What is done stays done; rows that fail anew behind the mark have had their try.
  const second = await take(id, "turn_second");
  expect(await putSomeBack(first, runner())).toBeNull();
  await fixture.database.db.query(
    `WITH failed AS (UPDATE dataset_rows SET state = 'failed', error_code = 'engine_failed', try = 2
                      WHERE dataset_id = $1 AND state = 'pending' RETURNING n)
     UPDATE datasets SET rows_pending = 0, rows_failed = rows_failed + (SELECT count(*) FROM failed) WHERE id = $1`,
    [id],
  );
  expect(await finish(second)).toBe(false);
  let steps = 1;
  const retrying = stopwatch("retry");
  for (let pending = 0; await retrying(() => putSomeBack(second, runner())); steps += 1) {
    await assertAddsUp(fixture, id);
    const { rows_pending } = await fixture.read(id);
    expect(rows_pending - pending).toBeLessThanOrEqual(ROWS_OF_A_STEP);
    pending = rows_pending;
  }
  expect(steps).toBe(Math.ceil((ROWS + INVALID) / ROWS_OF_A_STEP) + 1); // the last one finds no more rows
  const after = await fixture.read(id);
  expect(after).toMatchObject({
    retry_after: null,
    rows_cancelled: 0,
    rows_expired: 0,
    rows_failed: begun.rows_pending,
  });
  expect(after.rows_succeeded).toBe(before.rows_succeeded);
  expect(await putSomeBack(second, runner())).toBe(false);
  const wrong = (await fixture.rows(id)).filter((row) => {
    if (row.state === "failed") return row.try !== 2;
    if (row.state !== "pending") return !isDeepStrictEqual(row, rowsBefore.get(row.n));
    return row.try > 1 || row.error_code !== null || row.frames !== null || row.finished_at !== null;
  });
  expect(wrong).toEqual([]);

  // Asked for again it begins anew.
  expect(await retry(id)).toMatchObject({ state: "running", retry_after: 0 });
  while (await putSomeBack(second, runner()));
  expect(await fixture.read(id)).toMatchObject({ rows_failed: 0, rows_pending: ROWS - before.rows_succeeded });
  await assertAddsUp(fixture, id);
});

test("of a paused dataset is done, and leaves it paused; a cancellation ends it", async () => {
  const id = await ended("paused");
  expect(await retry(id)).toMatchObject({ state: "paused", retry_after: 0 });
  const turn = await take(id, "turn_one");
  expect(await putSomeBack(turn, runner())).toBe(true);
  const { rows_pending } = await fixture.read(id);

  expect(await cancelByOwner(fixture.database.as("gateway"), id, fixture.key)).toMatchObject({ retry_after: null });
  expect(await putSomeBack(turn, runner())).toBe(false);
  expect(await fixture.read(id)).toMatchObject({ state: "cancelling", rows_pending });
  await endTurn(runner(), turn, 0);
  await fixture.start();
  const cancelled = await fixture.until(id, ({ state }) => state === "cancelled", LIMIT_MS);
  expect(cancelled).toMatchObject({ rows_pending: 0, charged_mils: 0n });
  await assertAddsUp(fixture, id);
});

test("and a cancellation of as many rows, too", async () => {
  const id = await filled(PENDING);
  const turn = await take(id, "turn_one");
  await cancelByOwner(fixture.database.as("gateway"), id, fixture.key);
  const parts = { db: runner(), queues: fixture.queues, log: silentLog, refunded: () => undefined };
  const cancelling = stopwatch("cancel");
  let left = ROWS;
  while (left > 0) {
    const ended = await cancelling(() => callOffSome(turn, parts, new AbortController().signal));
    expect(ended).toBe(Math.min(left, ROWS_OF_A_STEP));
    left -= ended ?? 0;
    await assertAddsUp(fixture, id);
  }
  expect(await fixture.read(id)).toMatchObject({ state: "cancelling", rows_pending: 0, rows_cancelled: ROWS });
});

test("of a paused dataset is done by a runner that has nothing else to do with it", async () => {
  const id = await ended("paused");
  await retry(id);
  await fixture.start();
  const done = await fixture.until(id, ({ retry_after }) => retry_after === null, LIMIT_MS);
  expect(done).toMatchObject({ state: "paused", rows_failed: 0, rows_cancelled: 0, rows_expired: 0, rows_running: 0 });
  await assertAddsUp(fixture, id);
});
