/** What the janitor does with datasets: files whose time is over go, and uploads that broke off are refused. */
import { randomBytes } from "node:crypto";

import { afterEach, beforeEach, expect, test } from "vitest";

import { type DatasetId, newDatasetId } from "#contract/ids.ts";
import { blobKeys, datasetPrefixes } from "#contract/jobs.ts";
import { systemClock } from "#platform/clock.ts";
import { cleanDatasets } from "#scheduler/sweep/datasets.ts";

import { openRunFixture, type RunFixture } from "../datasets/run-fixture.ts";
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

test("more files than one round deletes are finished in the next ones", async () => {
  const id = await fixture.add({ rows: 1, state: "ready" });
  for (let n = 0; n < 40; n++) await fixture.blobs.put(blobKeys.datasetVideo(id, `ep-${n}`), Buffer.from("v"));
  await fixture.database.db.query(`UPDATE datasets SET state = 'cancelled', finished_at = now() WHERE id = $1`, [id]);
  expect(await clean(31 * DAY_MS, 30)).toBe(30);
  expect((await fixture.read(id)).files_deleted_at).toBeNull();
  expect(await clean(31 * DAY_MS, 30)).toBe(12);
  expect((await fixture.read(id)).files_deleted_at).not.toBeNull();
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
});
