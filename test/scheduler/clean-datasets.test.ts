/** What the janitor does with datasets: files whose time is over go, and uploads that broke off are refused. */
import { randomBytes } from "node:crypto";

import { afterEach, beforeEach, describe, expect, test } from "vitest";

import { type DatasetId, newDatasetId } from "#contract/ids.ts";
import { blobKeys, datasetPrefixes } from "#contract/jobs.ts";
import { pauseByOwner, resumeByOwner, retryByOwner } from "#datasets/control.ts";
import { deleteRejectedRows } from "#datasets/retention.ts";
import { systemClock } from "#platform/clock.ts";
import { cleanDatasets } from "#scheduler/sweep/datasets.ts";

import { assertAddsUp, openRunFixture, QUOTAS, type RunFixture, succeed } from "../datasets/run-fixture.ts";
import { openRunGateway } from "../datasets/support/run-gateway.ts";
import { getWithKey } from "../gateway/support/requests.ts";
import { silentLog } from "../support/postgres.ts";

const DAY_MS = 86_400_000;
let fixture: RunFixture;
beforeEach(async () => {
  fixture = await openRunFixture();
});
afterEach(() => fixture.end());

const clean = (aheadMs: number, blobsMax?: number) =>
  cleanDatasets(
    {
      db: fixture.database.as("scheduler"),
      blobs: fixture.blobs,
      retentionMs: 30 * DAY_MS,
      datasetIdleMs: 30 * 86_400_000,
      clock: { now: () => systemClock.now() + aheadMs },
      log: silentLog,
    },
    new AbortController().signal,
    blobsMax,
  );
async function stored(id: DatasetId): Promise<number> {
  let count = 0;
  for (const prefix of datasetPrefixes(id)) {
    for await (const _ of fixture.blobs.list(prefix)) count += 1;
  }
  return count;
}

test("the files of a dataset go when it ended long enough ago, and those of no other", async () => {
  const ended = await fixture.add({ rows: 3 });
  await fixture.start();
  fixture.startEngine();
  await fixture.until(ended, ({ state }) => state === "completed");
  const unfinished = await fixture.add({ rows: 3, state: "ready" });
  expect(await stored(ended)).toBe(8); // two inputs, three videos, metadata, two files of results

  expect(await clean(29 * DAY_MS)).toBe(0);
  expect(await clean(30 * DAY_MS + 60_000)).toBe(8);
  expect(await stored(ended)).toBe(0);
  expect((await fixture.read(ended)).files_deleted_at).not.toBeNull();
  expect(await stored(unfinished)).toBe(2);
  expect((await fixture.read(unfinished)).files_deleted_at).toBeNull();
  expect(await clean(31 * DAY_MS)).toBe(0);
});

test("nothing of a dataset is where its retention does not look", () => {
  const id = newDatasetId(randomBytes);
  const keys = [
    blobKeys.datasetInput(id, 1, "frame"),
    blobKeys.datasetInput(id, 1, "actions"),
    blobKeys.datasetVideo(id, "ep-1"),
    blobKeys.datasetMetadata(id),
    blobKeys.datasetResults(id, "jsonl"),
    blobKeys.datasetResults(id, "parquet"),
  ];
  expect(Object.keys(blobKeys).filter((name) => name.startsWith("dataset"))).toHaveLength(4); // all of them are above
  const prefixes = datasetPrefixes(id);
  expect(keys.filter((key) => !prefixes.some((prefix) => key.startsWith(prefix)))).toEqual([]);
  // Hugging Face's loader takes this folder whole: inputs would be samples of their own.
  const loaded = keys.filter((key) => key.startsWith(`datasets/${id}/`));
  expect(loaded).toEqual(keys.slice(2));
});

const rowsOf = async (id: DatasetId): Promise<number | undefined> => {
  const [row] = await fixture.database.db.query<{ rows: number }>(
    `SELECT count(*)::int AS rows FROM dataset_rows WHERE dataset_id = $1`,
    [id],
  );
  return row?.rows;
};

test("rows of a rejected dataset go with its files, in steps, and its counters with them; those of others stay", async () => {
  const [rejected, cancelled] = [
    await fixture.add({
      rows: Array.from({ length: 6_000 }, (_unused, n) => (n % 3 === 0 ? { num_actions: null } : {})),
      invalid: 40,
    }),
    await fixture.add({ rows: 3, invalid: 2 }),
  ];
  await fixture.database.db.query(
    `UPDATE datasets SET state = CASE id WHEN $1 THEN 'rejected' ELSE 'cancelled' END, finished_at = now()`,
    [rejected],
  );
  const scheduler = fixture.database.as("scheduler");
  expect(await deleteRejectedRows(scheduler, rejected, 5_000)).toBe(5_000);
  expect(await fixture.read(rejected)).toMatchObject({ rows_total: 1_040, rows_pending: 1_000, rows_invalid: 40 });
  await assertAddsUp(fixture, rejected);
  expect(await deleteRejectedRows(scheduler, cancelled, 5_000)).toBe(0);
  await clean(61 * 60_000);
  expect(await rowsOf(rejected)).toBe(0);
  expect(await fixture.read(rejected)).toMatchObject({
    rows_total: 0,
    rows_pending: 0,
    rows_invalid: 0,
    frames_expected: 0n,
    rows_unmeasured: 0,
  });
  await assertAddsUp(fixture, rejected);
  await clean(31 * DAY_MS);
  expect(await rowsOf(cancelled)).toBe(5);
});

test("more files than one round deletes are finished in the next ones", async () => {
  const id = await fixture.add({ rows: 1, state: "ready" });
  for (let n = 0; n < 40; n++) await fixture.blobs.put(blobKeys.datasetVideo(id, `ep-${n}`), Buffer.from("v"));
  await fixture.database.db.query(
    `UPDATE datasets SET state = 'cancelled', finished_at = now(), resting_since = NULL WHERE id = $1`,
    [id],
  );
  expect(await clean(31 * DAY_MS, 30)).toBe(30);
  expect((await fixture.read(id)).files_deleted_at).toBeNull();
  expect(await clean(31 * DAY_MS, 30)).toBe(12);
  expect((await fixture.read(id)).files_deleted_at).not.toBeNull();
});

const told = (id: DatasetId) =>
  fixture.database.db.query(`SELECT event, url FROM webhook_deliveries WHERE dataset_id = $1 ORDER BY created_at`, [
    id,
  ]);

describe("one that waits for its owner", () => {
  test("and is never started ends by itself after its time, as if its owner had cancelled it, and says why", async () => {
    const id = await fixture.add({ rows: 5, invalid: 1, state: "ready", webhook_url: "https://example.com/hook" });
    const running = await fixture.add({ rows: 1 });
    await clean(29 * DAY_MS);
    expect(await fixture.read(id)).toMatchObject({ state: "ready" });
    await clean(30 * DAY_MS + 60_000);
    expect(await fixture.read(id)).toMatchObject({ state: "cancelling", resting_since: null });
    expect(await fixture.read(running)).toMatchObject({ state: "running" });

    await fixture.start();
    const ended = await fixture.until(id, ({ state }) => state === "cancelled");
    expect(ended).toMatchObject({
      message: "nobody started it for 30 days, so it was cancelled",
      rows_cancelled: 5,
      rows_pending: 0,
      charged_mils: 0n,
    });
    expect(await told(id)).toEqual([{ event: "dataset.cancelled", url: "https://example.com/hook" }]);
    await assertAddsUp(fixture, id);
  });

  test("and is never resumed keeps what it has; what still runs is refunded", async () => {
    const id = await fixture.add({ rows: 4 });
    await fixture.start();
    await fixture.until(id, ({ rows_running }) => rows_running === 4);
    let left = 2;
    await fixture.engine((rollout, video) => (left-- > 0 ? succeed(rollout, video) : null));
    await fixture.until(id, ({ rows_succeeded }) => rows_succeeded === 2);
    await pauseByOwner(fixture.database.as("gateway"), id, fixture.key);
    await clean(30 * DAY_MS + 60_000);
    const ended = await fixture.until(id, ({ state }) => state === "cancelled");
    expect(ended).toMatchObject({
      message: "it was paused (requested) and nobody resumed it for 30 days, so it was cancelled",
      pause_reason: null,
      rows_succeeded: 2,
      rows_cancelled: 2,
    });
    expect(ended.refunded_mils).toBe(ended.charged_mils / 2n);
    await assertAddsUp(fixture, id);
  });

  test("and hears from its owner begins its time anew; whoever resumes it goes on", async () => {
    const gateway = fixture.database.as("gateway");
    const long = async (id: DatasetId): Promise<unknown> =>
      fixture.database.db.query(
        `UPDATE datasets SET resting_since = now() - interval '31 days' WHERE id = $1 AND resting_since IS NOT NULL`,
        [id],
      );
    const [resumed, again, retried] = [
      await fixture.add({ rows: 1, state: "ready" }),
      await fixture.add({ rows: 1, state: "ready" }),
      await fixture.add({ rows: 2 }),
    ];
    for (const id of [resumed, again]) await long(id);
    for (const id of [resumed, again]) await resumeByOwner(gateway, id, fixture.key, undefined);
    await pauseByOwner(gateway, again, fixture.key);
    await fixture.database.db.query(
      `WITH row AS (UPDATE dataset_rows SET state = 'expired' WHERE dataset_id = $1 AND n = 1)
       UPDATE datasets SET rows_pending = 1, rows_expired = 1 WHERE id = $1`,
      [retried],
    );
    await pauseByOwner(gateway, retried, fixture.key);
    await long(retried);
    await retryByOwner(gateway, retried, fixture.key, new Date(0), QUOTAS);
    await clean(0);
    expect(await fixture.read(resumed)).toMatchObject({ state: "running", resting_since: null });
    expect(await fixture.read(again)).toMatchObject({ state: "paused" });
    expect(await fixture.read(retried)).toMatchObject({ state: "paused", retry_after: 0 });
  });

  test("shows until when it does, and nothing of it while it runs or has ended", async () => {
    const { app } = await openRunGateway(fixture);
    try {
      const show = async (id: DatasetId) => (await getWithKey(app, `/v1/datasets/${id}`, fixture.key.api_key)).json();
      const id = await fixture.add({ rows: 1, state: "ready" });
      const { resting_since } = await fixture.read(id);
      expect((await show(id)).idle_until).toBe(Math.floor((resting_since?.getTime() ?? 0) / 1000) + 30 * 86_400);
      await resumeByOwner(fixture.database.as("gateway"), id, fixture.key, undefined);
      expect((await show(id)).idle_until).toBeNull();
      const paused = await pauseByOwner(fixture.database.as("gateway"), id, fixture.key);
      expect((await show(id)).idle_until).toBe(Math.floor((paused.resting_since?.getTime() ?? 0) / 1000) + 30 * 86_400);
      await clean(31 * DAY_MS);
      expect(await show(id)).toMatchObject({ state: "cancelling", idle_until: null });
    } finally {
      await app.close();
    }
  });

  test("and is resumed at the moment at which it ends is one or the other", async () => {
    for (let round = 0; round < 10; round++) {
      const id = await fixture.add({ rows: 1, state: "ready" });
      const [, resumed] = await Promise.allSettled([
        clean(31 * DAY_MS),
        resumeByOwner(fixture.database.as("gateway"), id, fixture.key, undefined),
      ]);
      const { state, message } = await fixture.read(id);
      const goesOn = resumed.status === "fulfilled";
      expect([state, message === null]).toEqual(goesOn ? ["running", true] : ["cancelling", false]);
      expect(resumed.status === "rejected" ? resumed.reason.code : "wrong_state").toBe("wrong_state");
    }
  });
});

test("one that nobody feeds any more is rejected, and its files go an hour later", async () => {
  const [alive, silent] = [await fixture.add({ rows: 1 }), await fixture.add({ rows: 1 })];
  await fixture.database.db.query(`UPDATE datasets SET state = 'receiving', started_at = NULL, idempotency_key = id`);
  await fixture.database.db.query(`UPDATE datasets SET worked_at = now() - interval '11 min' WHERE id = $1`, [silent]);
  expect(await clean(0)).toBe(0);
  expect(await fixture.read(silent)).toMatchObject({
    state: "rejected",
    message: expect.stringContaining("broke off"),
  });
  expect(await fixture.read(alive)).toMatchObject({ state: "receiving" });
  expect(await clean(61 * 60_000)).toBe(2);
  expect(await stored(alive)).toBe(2);
  expect(await rowsOf(silent)).toBe(0);
  expect(await rowsOf(alive)).toBe(1);
});
