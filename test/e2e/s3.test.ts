/** The demo with its blobs in a bucket: the real model in a real worker process, which gets at the bucket by itself. */
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

import { GetObjectCommand, ListObjectsV2Command } from "@aws-sdk/client-s3";
import { afterAll, beforeAll, expect, test } from "vitest";

import { countFrames } from "#cli/video-frames.ts";
import { type S3Server, startS3Server } from "#test/support/s3-server.ts";
import { findFfmpeg } from "#workers/inference/video/ffmpeg-path.ts";

import { run } from "../cli/command.ts";

const BUCKET = "dream-e2e";
const DEMO_TIMEOUT_MS = 90_000;

const home = mkdtempSync(join(tmpdir(), "dream-e2e-s3-"));
let server: S3Server;
beforeAll(async () => {
  server = await startS3Server();
  await server.createBucket(BUCKET);
}, 6 * 60_000);
afterAll(async () => {
  await server.stop();
  rmSync(home, { recursive: true, force: true });
});

test(
  "the demo keeps inputs, video and result in the bucket and nothing in a folder",
  { timeout: DEMO_TIMEOUT_MS },
  async () => {
    const dataDir = join(home, "data");
    const settings = { DATA_DIR: dataDir, MODELS_DIR: resolve("models"), PORT: "0", LOG_LEVEL: "warn" };
    const bucket = { BLOB_URL: `s3://${BUCKET}/laptop`, S3_ENDPOINT: server.endpoint, S3_REGION: server.region };
    const demo = await run([resolve("src/cli/demo.ts")], { ...settings, ...bucket, ...server.credentials }, home);
    expect(demo.code, demo.stderr).toBe(0);
    expect(demo.stdout).toContain("$0.0245 (245 mils)");
    expect(demo.stdout + demo.stderr).not.toContain(server.credentials.AWS_SECRET_ACCESS_KEY);

    const video = join(home, "rollout.mp4");
    expect(await countFrames(await findFfmpeg(undefined), video)).toBe(49);
    const { Contents = [] } = await server.client.send(new ListObjectsV2Command({ Bucket: BUCKET }));
    const names = Contents.map(({ Key = "" }) => Key.replace(/^laptop\/rollouts\/rollout_[0-9a-f]{32}\//, ""));
    expect(names.toSorted()).toEqual([
      expect.stringMatching(/^1\/[0-9a-f-]+\/rollout_000\.mp4$/),
      "1/result.json",
      "actions.f32",
      "start_frame.png",
    ]);
    const Key = Contents.find(({ Key }) => Key?.endsWith(".mp4"))?.Key;
    const { Body } = await server.client.send(new GetObjectCommand({ Bucket: BUCKET, Key }));
    expect(readFileSync(video).equals(Buffer.from((await Body?.transformToByteArray()) ?? []))).toBe(true);
    expect(existsSync(join(dataDir, "blobs"))).toBe(false);
  },
);
