/** What doctor says about a blob store, and what a process says that starts on one that cannot be used. */
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from "vitest";

import { checkBlobs } from "#cli/blobs-check.ts";
import { openBlobs } from "#cli/context.ts";
import { workerEnv } from "#cli/worker-access.ts";
import { type Config, ConfigError, readConfig } from "#platform/config.ts";
import { type S3Server, startS3Server } from "#test/support/s3-server.ts";

import { run } from "./command.ts";

const BUCKET = "dream-doctor";
const READ_ONLY = {
  Version: "2012-10-17",
  Statement: [{ Effect: "Allow", Action: ["s3:GetObject", "s3:ListBucket"], Resource: "*" }],
};

let server: S3Server;
let folder: string;

beforeAll(async () => {
  server = await startS3Server({ AKIAREADER: { secret: "a reader's secret", policy: READ_ONLY } });
  await server.createBucket(BUCKET);
  folder = await mkdtemp(join(tmpdir(), "dream-engine-test-doctor-"));
}, 6 * 60_000);
afterAll(async () => {
  await server.stop();
  await rm(folder, { recursive: true, force: true });
});
beforeEach(() => {
  for (const [name, value] of Object.entries(server.credentials)) vi.stubEnv(name, value);
});
afterEach(() => {
  vi.unstubAllEnvs();
});

const onS3 = (settings: Record<string, string> = {}): Config =>
  readConfig({
    BLOB_URL: `s3://${BUCKET}/some/prefix`,
    S3_ENDPOINT: server.endpoint,
    S3_REGION: server.region,
    DATA_DIR: folder,
    ...settings,
  });

test("a folder that works", async () => {
  const blobs = join(folder, "data", "blobs");
  expect(await checkBlobs(readConfig({ DATA_DIR: join(folder, "data") }))).toBe(
    `file://${blobs}, written, read, listed and deleted`,
  );
  expect(await readdir(blobs)).toEqual([".incoming"]);
});

test("a bucket that works, and where its links lead", async () => {
  const { host } = new URL(server.endpoint);
  expect(await checkBlobs(onS3())).toBe(
    `s3://${BUCKET}/some/prefix, written, read, listed and deleted; links lead to ${host}`,
  );
  expect(await checkBlobs(onS3({ S3_PUBLIC_ENDPOINT: "none" }))).toMatch(/the gateway serves the videos$/);
  for await (const blob of (await openBlobs(onS3())).list("")) expect.unreachable(blob.key);
});

test("links to where nobody answers", async () => {
  const check = checkBlobs(onS3({ S3_PUBLIC_ENDPOINT: "http://127.0.0.1:9" }));
  await expect(check).rejects.toThrow(/video links lead to 127\.0\.0\.1:9, .* set S3_PUBLIC_ENDPOINT/);
});

test.each([
  ["no such bucket", {}, { BLOB_URL: "s3://no-such-bucket" }, /there is no bucket no-such-bucket at http:.*make it/],
  [
    "the wrong region",
    {},
    { S3_REGION: "us-west-2" },
    /bucket dream-doctor is in eu-central-1, and S3_REGION is us-west-2; set it/,
  ],
  [
    "an unknown key",
    { AWS_ACCESS_KEY_ID: "AKIANOBODY" },
    {},
    /does not know the access key; correct AWS_ACCESS_KEY_ID/,
  ],
  ["a wrong secret", { AWS_SECRET_ACCESS_KEY: "wrong" }, {}, /secret key is not that of the access key/],
  ["nobody there", {}, { S3_ENDPOINT: "http://127.0.0.1:9" }, /http:\/\/127\.0\.0\.1:9 does not answer .*S3_ENDPOINT/],
])("%s: the reason and what to do, at the start of a process too", async (_what, env, settings, message) => {
  for (const [name, value] of Object.entries(env)) vi.stubEnv(name, value);
  const config = onS3(settings);
  const problem = await openBlobs(config).then(
    () => null,
    (error: unknown) => error,
  );
  expect(problem).toBeInstanceOf(ConfigError);
  expect(String(problem)).toMatch(message);
  await expect(checkBlobs(config)).rejects.toThrow(message);
  for (const secret of [server.credentials.AWS_SECRET_ACCESS_KEY, "wrong "])
    expect(String(problem)).not.toContain(secret);
});

test("credentials that may read and not write: says at which step, and that it is the rights", async () => {
  vi.stubEnv("AWS_ACCESS_KEY_ID", "AKIAREADER");
  vi.stubEnv("AWS_SECRET_ACCESS_KEY", "a reader's secret");
  await expect(checkBlobs(onS3())).rejects.toThrow(/cannot write a blob: these credentials may not do that in bucket/);
});

test("no credentials anywhere", async () => {
  const { stderr, code } = await run(["gateway"], {
    DATABASE_URL: "postgres://nobody@127.0.0.1:9/none",
    BLOB_URL: `s3://user:password@${BUCKET}`,
    HOME: folder,
  });
  expect(code).toBe(1);
  expect(stderr).toContain("BLOB_URL: expected file:///absolute/path or s3://bucket/optional/prefix");
  expect(stderr).not.toContain("password");
  for (const name of ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]) vi.stubEnv(name, "");
  vi.stubEnv("HOME", folder);
  vi.stubEnv("AWS_EC2_METADATA_DISABLED", "true");
  await expect(openBlobs(onS3())).rejects.toThrow(/no credentials were found: set AWS_ACCESS_KEY_ID/);
});

test("a worker gets what it needs for the store that there is, and nothing more", () => {
  vi.stubEnv("AWS_SESSION_TOKEN", "a token");
  vi.stubEnv("STRIPE_SECRET_KEY", "sk_test");
  const onBucket = workerEnv(onS3({ S3_PUBLIC_ENDPOINT: "https://videos.example.com" }), "pusher", null);
  expect(onBucket).toMatchObject({
    BLOB_URL: `s3://${BUCKET}/some/prefix`,
    S3_ENDPOINT: server.endpoint,
    S3_REGION: server.region,
    ...server.credentials,
    AWS_SESSION_TOKEN: "a token",
  });
  const onFolder = workerEnv(readConfig({ DATA_DIR: folder, S3_REGION: "eu-central-1" }), "pusher", null);
  expect(Object.keys(onFolder).filter((name) => /^(AWS|S3)_/.test(name))).toEqual([]);
  for (const env of [onBucket, onFolder]) {
    expect(Object.keys(env)).not.toContain("STRIPE_SECRET_KEY");
    expect(Object.keys(env)).not.toContain("S3_PUBLIC_ENDPOINT");
  }
});

test.each([
  ["BLOB_URL", "s3://Bucket"],
  ["BLOB_URL", "s3://bucket/../up"],
  ["BLOB_URL", "s3://bucket//a"],
  ["BLOB_URL", "s3://bucket?x=1"],
  ["BLOB_URL", "s3://"],
  ["BLOB_URL", "https://bucket.example.com"],
  ["S3_ENDPOINT", "minio:9000"],
  ["S3_ENDPOINT", "http://user:hidden@minio:9000"],
  ["S3_ENDPOINT", "http://minio:9000/?a=b"],
  ["S3_PUBLIC_ENDPOINT", "off"],
  ["S3_FORCE_PATH_STYLE", "yes"],
  ["S3_REGION", "Frankfurt am Main"],
])("%s=%s is refused", (name, value) => {
  expect(() => readConfig({ [name]: value })).toThrow(`${name}: expected`);
  expect(() => readConfig({ [name]: value })).not.toThrow("hidden");
});
