/** A dataset with its blobs in a bucket: videos are copied inside it, results written to it, links lead to it. */
import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, expect, test, vi } from "vitest";

import type { BlobStore } from "#blobs/blob-store.ts";
import { createS3Blobs } from "#blobs/s3.ts";
import { blobKeys } from "#contract/jobs.ts";
import { createRowVideoLinks } from "#datasets/row-video-links.ts";
import { systemClock } from "#platform/clock.ts";
import { cleanDatasets } from "#scheduler/sweep/datasets.ts";

import { assertBooksBalance } from "../support/ledger.ts";
import { silentLog } from "../support/postgres.ts";
import { type S3Server, startS3Server } from "../support/s3-server.ts";
import { assertAddsUp, openRunFixture, type RunFixture } from "./run-fixture.ts";

const BUCKET = "dream-datasets";
const DAY_MS = 24 * 3_600_000;

let server: S3Server;
let blobs: BlobStore;
let fixture: RunFixture;
beforeAll(async () => {
  server = await startS3Server();
  await server.createBucket(BUCKET);
  for (const [name, value] of Object.entries(server.credentials)) vi.stubEnv(name, value);
  const { endpoint, region } = server;
  const where = { bucket: BUCKET, prefix: "", region, endpoint, publicEndpoint: undefined, forcePathStyle: true };
  blobs = createS3Blobs({ ...where, clock: systemClock });
  fixture = await openRunFixture(blobs);
}, 6 * 60_000);
afterAll(async () => {
  await assertBooksBalance(fixture.database.db);
  await fixture.end();
  await server.stop();
  vi.unstubAllEnvs();
});

test(
  "runs to its end, gives links to the bucket, and is deleted from it when its time is over",
  { timeout: 60_000 },
  async () => {
    const id = await fixture.add({ rows: 12, invalid: 1 });
    await fixture.start();
    fixture.startEngine();
    await fixture.until(id, ({ state }) => state === "completed", 45_000);
    await assertAddsUp(fixture, id);

    const links = createRowVideoLinks({ secret: randomBytes(32), blobs });
    const around = { publicUrl: "https://dream.example.com", nowMs: Date.now(), filesDeleted: false };
    for (const row of (await fixture.rows(id)).slice(0, 12)) {
      const link = await links.of(row, around);
      expect(link?.url).toMatch(`${server.endpoint}/${BUCKET}/datasets/${id}/videos/ep-${row.n}.mp4?`);
      const video = await fetch(link?.url ?? "");
      expect([video.status, await video.text()]).toEqual([200, `the video of ${row.rollout_id}`]);
    }
    const records = (await blobs.get(blobKeys.datasetResults(id, "jsonl"))).toString().trim().split("\n");
    expect(records).toHaveLength(13);
    const parquet = await blobs.get(blobKeys.datasetResults(id, "parquet"));
    expect(parquet.subarray(0, 4).toString()).toBe("PAR1");

    const scheduler = { db: fixture.database.as("scheduler"), blobs, retentionMs: DAY_MS, log: silentLog };
    const signal = new AbortController().signal;
    expect(await cleanDatasets({ ...scheduler, clock: systemClock }, signal)).toBe(0);
    const later = { now: () => Date.now() + 2 * DAY_MS };
    // Twelve videos, two results and the two inputs that the rows share.
    expect(await cleanDatasets({ ...scheduler, clock: later }, signal)).toBe(16);
    expect(await blobs.info(blobKeys.datasetVideo(id, "ep-1"))).toBeNull();
    expect((await blobs.list(`datasets/${id}/`)[Symbol.asyncIterator]().next()).done).toBe(true);
  },
);
