/**
 * The gateway, a worker and the janitor on a bucket, each under the policy that docs/operations.md gives it. Signatures,
 * their expiry and the policies are enforced by the server.
 */
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from "vitest";

import { BlobNotFound, type BlobStore } from "#blobs/blob-store.ts";
import { createS3Blobs, type S3Options } from "#blobs/s3.ts";
import { newRolloutId, type RolloutId } from "#contract/ids.ts";
import { blobKeys } from "#contract/jobs.ts";
import { mils } from "#contract/mils.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import { deleteOrphans } from "#scheduler/sweep/janitor.ts";
import { assertBooksBalance } from "#test/support/ledger.ts";
import { silentLog } from "#test/support/postgres.ts";
import { type S3Server, startS3Server } from "#test/support/s3-server.ts";

import { predictParts, postForm, rolloutParts } from "../gateway/support/requests.ts";
import { startTestGateway, type TestGateway } from "../gateway/support/test-gateway.ts";

/** The name that the policies in the documentation have. */
const BUCKET = "dream-blobs";
const HOUR_MS = 3_600_000;

const [CONTROL = {}, WORKER = {}] = [
  ...readFileSync("docs/operations.md", "utf8").matchAll(/^```json\n([^]*?)^```$/gm),
].map(([, json = ""]) => JSON.parse(json) as object);
const USERS = {
  AKIACONTROL: { secret: "the secret of the control plane", policy: CONTROL },
  AKIAWORKER: { secret: "the secret of a worker", policy: WORKER },
};

let server: S3Server;
let t: TestGateway;
/** Added to the clock by which the gateway's links are signed. */
let signedLaterMs = 0;

beforeAll(async () => {
  server = await startS3Server(USERS);
  await server.createBucket(BUCKET);
  t = await startTestGateway({ blobs: as("AKIACONTROL") });
}, 6 * 60_000);
afterEach(() => {
  signedLaterMs = 0;
});
afterAll(async () => {
  vi.unstubAllEnvs();
  await assertBooksBalance(t.db);
  await t.stop();
  await server.stop();
});

/** The store as that user; the SDK asks for credentials with the first request, and keeps them. */
function as(user: keyof typeof USERS, options: Partial<S3Options> = {}, expiration = ""): BlobStore {
  vi.stubEnv("AWS_ACCESS_KEY_ID", user);
  vi.stubEnv("AWS_SECRET_ACCESS_KEY", USERS[user].secret);
  vi.stubEnv("AWS_CREDENTIAL_EXPIRATION", expiration);
  return createS3Blobs({
    bucket: BUCKET,
    prefix: "",
    region: server.region,
    endpoint: server.endpoint,
    publicEndpoint: undefined,
    forcePathStyle: true,
    clock: { now: () => Date.now() + signedLaterMs },
    ...options,
  });
}

interface Envelope {
  readonly id: RolloutId;
  readonly video_url: string;
  readonly video_url_expires_at: number;
}

async function dream(): Promise<Envelope> {
  const key = await t.newKey(mils(1_000));
  const answer = await postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts("{}"));
  expect(answer.statusCode, answer.body).toBe(200);
  return answer.json();
}

const storedVideo = async (id: RolloutId): Promise<Buffer> => {
  const [row] = await t.db.query<Rollout>("SELECT * FROM rollouts WHERE id = $1", [id]);
  return t.blobs.get(row?.result?.video_keys[0] ?? "");
};

const refused = async (url: string, init: RequestInit = {}): Promise<void> => {
  const answer = await fetch(url, init);
  expect([answer.status, await answer.text()]).toEqual([
    403,
    expect.stringMatching(/SignatureDoesNotMatch|AccessDenied/),
  ]);
};

describe("video_url of a rollout", () => {
  test("leads to the bucket, and whoever has it gets the video without any header", async () => {
    const { id, video_url, video_url_expires_at } = await dream();
    expect(video_url).toMatch(new RegExp(`^${server.endpoint}/${BUCKET}/rollouts/${id}/`));
    expect(video_url_expires_at - Date.now() / 1000).toBeGreaterThan(3_500);
    expect(decodeURIComponent(video_url)).not.toContain("secret");

    const video = await fetch(video_url);
    expect(video.status).toBe(200);
    expect(video.headers.get("content-type")).toBe("video/mp4");
    expect(video.headers.get("content-disposition")).toBe(`inline; filename="${id}_0.mp4"`);
    const bytes = Buffer.from(await video.arrayBuffer());
    expect(bytes.subarray(4, 8).toString()).toBe("ftyp");
    expect(bytes.equals(await storedVideo(id))).toBe(true);

    const part = await fetch(video_url, { headers: { Range: "bytes=4-7" } });
    expect([part.status, await part.text()]).toEqual([206, "ftyp"]);
  });

  test("is for that video, for reading it, and for an hour", async () => {
    const { id, video_url } = await dream();
    const other = await dream();
    await refused(video_url.replace(id, other.id));
    await refused(video_url.replace("X-Amz-Expires=3600", "X-Amz-Expires=36000"));
    await refused(video_url.replace("video%2Fmp4", "text%2Fhtml"));
    await refused(video_url, { method: "DELETE" });
    await refused(video_url, { method: "PUT", body: "another video" });
    await refused(video_url.replace(/\?.*/, ""));
    expect((await fetch(video_url)).status).toBe(200);

    signedLaterMs = -HOUR_MS - 1_000;
    const expired = await fetch((await dream()).video_url);
    expect([expired.status, await expired.text()]).toEqual([403, expect.stringContaining("Request has expired")]);
    signedLaterMs = -HOUR_MS + 60_000;
    expect((await fetch((await dream()).video_url)).status).toBe(200);
  });

  test("carries the name by which clients know the store", async () => {
    const { id } = await dream();
    const [row] = await t.db.query<Rollout>("SELECT * FROM rollouts WHERE id = $1", [id]);
    const publicEndpoint = server.endpoint.replace("127.0.0.1", "localhost");
    const link = await as("AKIACONTROL", { publicEndpoint }).presignedUrl?.(row?.result?.video_keys[0] ?? "", {
      lifetimeMs: HOUR_MS,
      filename: "x.mp4",
    });
    expect(link).toMatch(new RegExp(`^${publicEndpoint}/${BUCKET}/`));
    expect((await fetch(link ?? "")).status).toBe(200);
  });

  test.each([
    ["clients cannot reach the store", { publicEndpoint: null }, ""],
    ["the credentials end before the link would", {}, new Date(Date.now() + HOUR_MS / 2).toISOString()],
  ])("is the gateway's own where %s", async (_why, options, expiration) => {
    const own = await startTestGateway({ blobs: as("AKIACONTROL", options, expiration) });
    const { url } = await own.listen();
    const key = await own.newKey();
    const answer = await postForm(own.app, "/v1/rollouts", key.api_key, await rolloutParts("{}"));
    const link = new URL(answer.json<Envelope>().video_url);
    expect(link.pathname).toMatch(/^\/v1\/rollouts\/rollout_[0-9a-f]{32}\/video$/);
    const video = await fetch(new URL(link.pathname + link.search, url));
    expect([video.status, video.headers.get("content-type")]).toEqual([200, "video/mp4"]);
    expect(
      Buffer.from(await video.arrayBuffer())
        .subarray(4, 8)
        .toString(),
    ).toBe("ftyp");
    await own.stop();
  });

  test("credentials that outlast the link sign it", async () => {
    const blobs = as("AKIACONTROL", {}, new Date(Date.now() + 2 * HOUR_MS).toISOString());
    expect(await blobs.presignedUrl?.("a/b", { lifetimeMs: HOUR_MS, filename: "x.mp4" })).toContain("X-Amz-Signature=");
  });
});

test("POST /v1/predict answers with the video from the bucket", async () => {
  const key = await t.newKey(mils(1_000));
  const answer = await postForm(t.app, "/v1/predict", key.api_key, await predictParts());
  expect(answer.statusCode).toBe(200);
  const [row] = await t.db.query<Rollout>("SELECT * FROM rollouts WHERE request_id = $1", [
    answer.headers["x-dreamengine-request-id"],
  ]);
  expect(answer.rawPayload.equals(await t.blobs.get(row?.result?.video_keys[0] ?? "no row"))).toBe(true);
});

test("the janitor deletes from the bucket what no rollout names, and nothing else", async () => {
  const { id, video_url } = await dream();
  const nobody = newRolloutId(randomBytes);
  const late = blobKeys.video(id, 1, "late", 0);
  await t.blobs.put(blobKeys.frame(nobody), Buffer.from("x"));
  await t.blobs.put(late, Buffer.from("x"));
  const prefixes = new Set([id, nobody].map((one) => `rollouts/${one.slice(0, "rollout_".length + 2)}`));
  const sweep = async (clock: { now(): number }): Promise<void> => {
    const options = { db: t.db, blobs: t.blobs, clock, log: silentLog };
    for (const prefix of prefixes) await deleteOrphans(prefix, options, new AbortController().signal);
  };
  await sweep({ now: () => Date.now() });
  expect(await t.blobs.info(late)).not.toBeNull(); // too young to tell
  await sweep({ now: () => Date.now() + 2 * HOUR_MS });
  expect(await t.blobs.info(late)).toBeNull();
  expect(await t.blobs.info(blobKeys.frame(nobody))).toBeNull();
  expect(await t.blobs.info(blobKeys.frame(id))).not.toBeNull();
  expect((await fetch(video_url)).status).toBe(200);
});

test("a worker's policy lets it work and do nothing else", async () => {
  const { id } = await dream();
  const worker = as("AKIAWORKER");
  const local = await mkdtemp(join(tmpdir(), "dream-engine-test-worker-"));
  const file = join(local, "video.mp4");
  const denied = { name: "AccessDenied" };

  expect((await worker.get(blobKeys.frame(id))).length).toBeGreaterThan(0);
  await expect(worker.get(blobKeys.result(id, 7))).rejects.toThrow(BlobNotFound);
  await writeFile(file, Buffer.alloc(9 * 1024 * 1024, "x"));
  await worker.putFile(blobKeys.video(id, 7, "run", 0), file);
  await worker.put(blobKeys.result(id, 7), Buffer.from("{}"));

  await expect(worker.delete(blobKeys.frame(id))).rejects.toMatchObject(denied);
  await t.blobs.put(blobKeys.upload("upload_1"), Buffer.from("a customer's"));
  await expect(worker.get(blobKeys.upload("upload_1"))).rejects.toMatchObject(denied);
  await expect(worker.put(blobKeys.upload("upload_1"), Buffer.from("x"))).rejects.toMatchObject(denied);
  await expect(worker.copy(blobKeys.upload("upload_1"), blobKeys.frame(id))).rejects.toMatchObject(denied);
  expect(await t.blobs.info(blobKeys.frame(id))).not.toBeNull();
  await rm(local, { recursive: true });
});
