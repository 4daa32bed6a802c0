/** What has been kept long enough goes, and nothing else; whoever dies in between leaves nothing behind for ever. */
import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";

import type { BlobStore } from "#blobs/blob-store.ts";
import { newDatasetId, newUploadId, type RolloutId, type UploadId } from "#contract/ids.ts";
import { blobKeys } from "#contract/jobs.ts";
import { systemClock } from "#platform/clock.ts";
import { type Leadership, tryLead } from "#rollouts/leader.ts";
import { settle } from "#rollouts/settle.ts";
import { deleteOutdatedFiles, deleteOutdatedUploads } from "#scheduler/sweep/retention.ts";

import { accept, cancelled, dispatch, failed, newCustomer } from "../support/ledger.ts";
import { silentLog } from "../support/postgres.ts";
import { type Fixture, openFixture } from "./scheduler-fixture.ts";

const DAY_MS = 24 * 3_600_000;
const going = new AbortController().signal;

let fixture: Fixture;
let leader: Leadership;
let options: Parameters<typeof deleteOutdatedFiles>[0];

beforeAll(async () => {
  fixture = await openFixture();
  const db = fixture.database.as("scheduler");
  const leadership = await tryLead(db, "test");
  if (!leadership) throw new Error("nobody leads");
  leader = leadership;
});
beforeEach(async () => {
  const { database, blobs } = fixture;
  await database.db.query("UPDATE rollouts SET files_deleted_at = now() WHERE finished_at IS NOT NULL");
  await database.db.query("DELETE FROM uploads");
  options = {
    db: database.as("scheduler"),
    blobs,
    epoch: leader.epoch,
    retentionMs: 30 * DAY_MS,
    clock: systemClock,
    log: silentLog,
  };
});
afterAll(async () => {
  await leader.resign();
  await fixture.end();
});

const video = (id: RolloutId, run = "run"): string => blobKeys.video(id, 1, run, 0);

/** Ended so many days ago, with all its files. */
async function ended(
  daysAgo: number,
  overrides: Parameters<typeof accept>[2] = {},
  outcome: "succeeded" | "failed" | "cancelled" = "succeeded",
): Promise<RolloutId> {
  const { db } = fixture.database;
  const { id } = await accept(db, fixture.key, overrides);
  await dispatch(db, id);
  const timings = { engine_wall_ms: 1, fetch_ms: 1, encode_ms: 1, total_ms: 3 };
  const result = { video_keys: [video(id)], frames: 49, timings };
  await settle(
    db,
    id,
    1,
    outcome === "succeeded" ? { kind: "succeeded", result } : outcome === "failed" ? failed() : cancelled,
  );
  for (const key of filesOf(id)) await fixture.blobs.put(key, Buffer.from("x"));
  await db.query(`UPDATE rollouts SET finished_at = now() - $2::int * interval '1 day' WHERE id = $1`, [id, daysAgo]);
  return id;
}

const filesOf = (id: RolloutId): string[] => [
  blobKeys.frame(id),
  blobKeys.actions(id),
  blobKeys.result(id, 1),
  video(id),
];

async function stored(keys: readonly string[]): Promise<number> {
  const infos = await Promise.all(keys.map((key) => fixture.blobs.info(key)));
  return infos.filter((info) => info !== null).length;
}

const isMarked = async (id: RolloutId): Promise<boolean> => (await fixture.read(id)).files_deleted_at !== null;

test("inputs and videos go when their time is over, of every kind of end, and what is younger or unfinished stays", async () => {
  const old = [await ended(31), await ended(400, {}, "failed"), await ended(31, { k: 1 }, "cancelled")];
  const young = await ended(29);
  const waiting = (await accept(fixture.database.db, fixture.key)).id;
  await fixture.blobs.put(blobKeys.frame(waiting), Buffer.from("x"));
  await fixture.database.db.query("UPDATE rollouts SET created_at = now() - interval '1 year' WHERE id = $1", [
    waiting,
  ]);

  expect(await deleteOutdatedFiles(options, going)).toBe(3);
  for (const id of old) {
    // A failed one has no row that names its video: that is the orphans' sweep's, which now takes everything of it.
    const named = (await fixture.read(id)).result === null ? filesOf(id).slice(0, 3) : filesOf(id);
    expect(await stored(named)).toBe(0);
    expect(await isMarked(id)).toBe(true);
  }
  expect(await stored(filesOf(young))).toBe(4);
  expect(await isMarked(young)).toBe(false);
  expect(await stored([blobKeys.frame(waiting)])).toBe(1);
  expect(await deleteOutdatedFiles(options, going)).toBe(0);
});

test("a crash between deleting and marking leaves work that the next round finds and finishes", async () => {
  const id = await ended(31);
  const broken: BlobStore = {
    ...fixture.blobs,
    async delete(key) {
      if (key === video(id)) throw new Error("the process died here");
      await fixture.blobs.delete(key);
    },
  };
  await expect(deleteOutdatedFiles({ ...options, blobs: broken }, going)).rejects.toThrow("the process died here");
  expect(await isMarked(id)).toBe(false);
  // Deleted and not marked: as if it had died a moment later.
  for (const key of filesOf(id)) await fixture.blobs.delete(key);
  expect(await deleteOutdatedFiles(options, going)).toBe(1);
  expect(await isMarked(id)).toBe(true);
});

test("a round that is told to stop marks nothing", async () => {
  const id = await ended(31);
  expect(await deleteOutdatedFiles(options, AbortSignal.abort())).toBe(0);
  expect(await isMarked(id)).toBe(false);
  expect(await stored(filesOf(id))).toBe(4);
});

test("a leader whose term is over marks nothing", async () => {
  const id = await ended(31);
  await deleteOutdatedFiles({ ...options, epoch: leader.epoch - 1n }, going);
  expect(await isMarked(id)).toBe(false);
  expect(await deleteOutdatedFiles(options, going)).toBe(1);
});

test("the video of a dataset's row stays until the row has ended", async () => {
  const { db } = fixture.database;
  const dataset = newDatasetId(randomBytes);
  await newDataset(dataset, "running");
  const id = await ended(31, { route: "dataset", lane: "bulk", dataset: { id: dataset, row: 1 } });
  await db.query(
    `INSERT INTO dataset_rows (dataset_id, n, row_id, state, source, params, try, rollout_id)
     VALUES ($1, 1, 'row-1', 'running', '{}', '{}', 1, $2)`,
    [dataset, id],
  );
  expect(await deleteOutdatedFiles(options, going)).toBe(0);
  expect(await stored(filesOf(id))).toBe(4);
  await db.query(`UPDATE dataset_rows SET state = 'succeeded', video_key = 'x' WHERE dataset_id = $1`, [dataset]);
  expect(await deleteOutdatedFiles(options, going)).toBe(1);
});

async function newDataset(id: string, state: "running" | "completed", customer = fixture.key): Promise<void> {
  await fixture.database.db.query(
    `INSERT INTO datasets (id, customer_id, key_id, request_id, model, on_invalid, fingerprint, state, finished_at)
     VALUES ($1, $2, $3, 'req_test', 'pusht-small', 'skip', sha256('x'), $4, CASE $4 WHEN 'completed' THEN now() END)`,
    [id, customer.customer_id, customer.key_id, state],
  );
}

async function upload(daysAgo: number, customer = fixture.key): Promise<UploadId> {
  const id = newUploadId(randomBytes);
  await fixture.blobs.put(blobKeys.upload(id), Buffer.from("x"));
  await fixture.database.db.query(
    `INSERT INTO uploads (id, customer_id, bytes, sha256, created_at)
     VALUES ($1, $2, 1, sha256('x'), now() - $3::int * interval '1 day')`,
    [id, customer.customer_id, daysAgo],
  );
  return id;
}

test("uploads go when their time is over, but not while a dataset of their customer may still name them", async () => {
  const [busy, done] = [await newCustomer(fixture.database.db), await newCustomer(fixture.database.db)];
  const running = newDatasetId(randomBytes);
  await newDataset(running, "running", busy);
  await newDataset(newDatasetId(randomBytes), "completed", done);
  const [young, old, needed] = [await upload(29, done), await upload(31, done), await upload(31, busy)];

  expect(await deleteOutdatedUploads(options, going)).toBe(1);
  expect(await stored([young, needed].map(blobKeys.upload))).toBe(2);
  expect(await stored([blobKeys.upload(old)])).toBe(0);
  const left = await fixture.database.db.query<{ id: string }>("SELECT id FROM uploads");
  expect(left.map(({ id }) => id).toSorted()).toEqual([young, needed].toSorted());

  await fixture.database.db.query("UPDATE datasets SET state = 'completed', finished_at = now() WHERE id = $1", [
    running,
  ]);
  expect(await deleteOutdatedUploads({ ...options, epoch: leader.epoch - 1n }, going)).toBe(1);
  // Its row is still there for the leader to find, so nothing of it is forgotten.
  expect(await deleteOutdatedUploads(options, going)).toBe(1);
  expect(await deleteOutdatedUploads(options, going)).toBe(0);
});
