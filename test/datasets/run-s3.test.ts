/** A dataset with its blobs in a bucket: videos are copied inside it, results written to it, links lead to it. */
import { afterAll, beforeAll, expect, test, vi } from "vitest";

import type { BlobStore } from "#blobs/blob-store.ts";
import { createS3Blobs } from "#blobs/s3.ts";
import { blobKeys, datasetPrefixes } from "#contract/jobs.ts";
import type { Gateway } from "#gateway/app.ts";
import { systemClock } from "#platform/clock.ts";
import { cleanDatasets } from "#scheduler/sweep/datasets.ts";

import { assertBooksBalance } from "../support/ledger.ts";
import { silentLog } from "../support/postgres.ts";
import { type S3Server, startS3Server } from "../support/s3-server.ts";
import { assertAddsUp, openRunFixture, type RunFixture } from "./run-fixture.ts";
import { openRunGateway } from "./support/run-gateway.ts";

const BUCKET = "dream-datasets";
const DAY_MS = 24 * 3_600_000;

let server: S3Server;
let blobs: BlobStore;
let fixture: RunFixture;
let gateway: Gateway;
beforeAll(async () => {
  server = await startS3Server();
  await server.createBucket(BUCKET);
  for (const [name, value] of Object.entries(server.credentials)) vi.stubEnv(name, value);
  const { endpoint, region } = server;
  const where = { bucket: BUCKET, prefix: "", region, endpoint, publicEndpoint: undefined, forcePathStyle: true };
  blobs = createS3Blobs({ ...where, clock: systemClock });
  fixture = await openRunFixture(blobs);
  gateway = await openRunGateway(fixture);
}, 6 * 60_000);
afterAll(async () => {
  await assertBooksBalance(fixture.database.db);
  await gateway.app.close();
  await fixture.end();
  await server.stop();
  vi.unstubAllEnvs();
});

test(
  "runs to its end, its links lead on to the bucket, and it is deleted from there when its time is over",
  { timeout: 60_000 },
  async () => {
    const id = await fixture.add({ rows: 12, invalid: 1 });
    await fixture.start();
    fixture.startEngine();
    await fixture.until(id, ({ state }) => state === "completed", 45_000);
    await assertAddsUp(fixture, id);

    const headers = { authorization: `Bearer ${fixture.key.api_key}` };
    const page = await gateway.app.inject({ url: `/v1/datasets/${id}/rows?state=succeeded`, headers });
    const rows = page.json<{ data: { n: number; rollout_id: string; video_url: string }[] }>().data;
    expect(rows).toHaveLength(12);
    for (const { n, rollout_id, video_url } of rows) {
      expect(video_url).toMatch(`https://dreams.example/v1/datasets/${id}/video?row=${n}&`);
      const answer = await gateway.app.inject(video_url);
      expect([answer.statusCode, answer.headers["cache-control"]]).toEqual([302, "no-store"]);
      const link = String(answer.headers.location);
      expect(link).toMatch(`${server.endpoint}/${BUCKET}/datasets/${id}/videos/ep-${n}.mp4?`);
      const video = await fetch(link);
      expect([video.status, await video.text()]).toEqual([200, `the video of ${rollout_id}`]);
      expect(video.headers.get("content-disposition")).toBe(`inline; filename="ep-${n}.mp4"`);
      // What is signed for GET would refuse it.
      const head = await gateway.app.inject({ method: "HEAD", url: video_url });
      expect([head.statusCode, head.headers["content-length"]]).toEqual([
        200,
        String(`the video of ${rollout_id}`.length),
      ]);
      const forged = await gateway.app.inject(video_url.replace(`row=${n}`, `row=${(n % 12) + 1}`));
      expect([forged.statusCode, forged.headers.location]).toEqual([403, undefined]);
    }
    const results = await gateway.app.inject({ url: `/v1/datasets/${id}/results`, headers });
    const [first = ""] = results.body.split("\n");
    expect(first).toContain(`"video_url":"https://dreams.example/v1/datasets/${id}/video?row=1&`);
    const records = (await blobs.get(blobKeys.datasetResults(id, "jsonl"))).toString().trim().split("\n");
    expect(records).toHaveLength(13);
    const parquet = await blobs.get(blobKeys.datasetResults(id, "parquet"));
    expect(parquet.subarray(0, 4).toString()).toBe("PAR1");

    const scheduler = {
      db: fixture.database.as("scheduler"),
      blobs,
      retentionMs: DAY_MS,
      datasetIdleMs: 30 * DAY_MS,
      log: silentLog,
    };
    const signal = new AbortController().signal;
    expect(await cleanDatasets({ ...scheduler, clock: systemClock }, signal)).toBe(0);
    const later = { now: () => Date.now() + 2 * DAY_MS };
    // Twelve videos, metadata, two results and the two inputs that the rows share.
    expect(await cleanDatasets({ ...scheduler, clock: later }, signal)).toBe(17);
    for (const prefix of datasetPrefixes(id)) {
      expect((await blobs.list(prefix)[Symbol.asyncIterator]().next()).done).toBe(true);
    }
    const gone = await gateway.app.inject(rows[0]?.video_url ?? "");
    expect([gone.statusCode, gone.headers.location]).toEqual([410, undefined]);
  },
);
