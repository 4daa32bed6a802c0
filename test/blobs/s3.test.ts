/** The same suite on a bucket, through the SDK and over HTTP, and what goes wrong on the way there. */
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import { setTimeout as delay } from "node:timers/promises";

import { GetObjectCommand, ListMultipartUploadsCommand, PutObjectCommand } from "@aws-sdk/client-s3";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";

import type { BlobStore } from "#blobs/blob-store.ts";
import { createS3Blobs, type S3Options } from "#blobs/s3.ts";
import { systemClock } from "#platform/clock.ts";
import { type FaultProxy, startFaultProxy } from "#test/support/fault-proxy.ts";
import { type S3Server, startS3Server } from "#test/support/s3-server.ts";

import { blobStoreConformance } from "./conformance.ts";

const BUCKET = "dream-test";

let server: S3Server;
let proxy: FaultProxy;
let local: string;

beforeAll(async () => {
  server = await startS3Server();
  for (const [name, value] of Object.entries(server.credentials)) vi.stubEnv(name, value);
  await server.createBucket(BUCKET);
  proxy = await startFaultProxy(server.endpoint);
  local = await mkdtemp(join(tmpdir(), "dream-engine-test-s3-"));
}, 6 * 60_000);
afterAll(async () => {
  vi.unstubAllEnvs();
  await proxy.stop();
  await server.stop();
  await rm(local, { recursive: true, force: true });
});

const optionsFor = (endpoint: string, prefix = ""): S3Options => ({
  bucket: BUCKET,
  prefix,
  region: server.region,
  endpoint,
  publicEndpoint: undefined,
  forcePathStyle: true,
  clock: systemClock,
});

blobStoreConformance("S3 bucket, below a prefix", async () =>
  createS3Blobs(optionsFor(server.endpoint, "dream/production")),
);

test("keeps to its prefix", async () => {
  const inside = createS3Blobs(optionsFor(server.endpoint, "mine"));
  await inside.put("a/b", Buffer.from("x"));
  const beside = { Bucket: BUCKET, Key: "mine-too/a/b", Body: "somebody else's" };
  await server.client.send(new PutObjectCommand(beside));
  const { Body } = await server.client.send(new GetObjectCommand({ Bucket: BUCKET, Key: "mine/a/b" }));
  expect(await Body?.transformToString()).toBe("x");
  expect(await keysOf(inside, "")).toEqual(["a/b"]);
});

test("what others keep in the bucket under names that no key has is passed over", async () => {
  const blobs = createS3Blobs(optionsFor(server.endpoint, "shared"));
  await blobs.put("a/b", Buffer.from("x"));
  for (const Key of ["shared/", "shared/a/", "shared/a/.hidden", "shared/a b", `shared/${"x".repeat(300)}`]) {
    await server.client.send(new PutObjectCommand({ Bucket: BUCKET, Key, Body: "theirs" }));
  }
  expect(await keysOf(blobs, "")).toEqual(["a/b"]);
});

test("a bucket that is not there is an error, not a blob that is not there", async () => {
  const nowhere = createS3Blobs({ ...optionsFor(server.endpoint), bucket: "no-such-bucket" });
  await expect(nowhere.get("a/b")).rejects.toMatchObject({ name: "NoSuchBucket" });
  await expect(nowhere.put("a/b", Buffer.from("x"))).rejects.toMatchObject({ name: "NoSuchBucket" });
  await expect(keysOf(nowhere, "")).rejects.toMatchObject({ name: "NoSuchBucket" });
});

describe("when the network or the store fails", () => {
  let blobs: BlobStore;
  beforeEach(() => {
    blobs = createS3Blobs(optionsFor(proxy.endpoint, "faults"));
  });
  afterEach(() => proxy.fail(() => null));

  test.each([
    [500, "InternalError"],
    [503, "SlowDown"],
    [503, "ServiceUnavailable"],
  ])("%i %s, twice: tried again", async (status, code) => {
    const answer = { kind: "answer", status, body: errorBody(code) } as const;
    failFirst("PUT", 2, () => answer);
    await blobs.put("retried/file", Buffer.from(code));
    failFirst("GET", 2, () => answer);
    expect((await blobs.get("retried/file")).toString()).toBe(code);
    failFirst("HEAD", 2, () => answer);
    expect(await blobs.info("retried/file")).toMatchObject({ bytes: code.length });
    failFirst("DELETE", 2, () => answer);
    await blobs.delete("retried/file");
    expect(await blobs.info("retried/file")).toBeNull();
  });

  test("a store that is down for longer: an error after a bounded number of tries", async () => {
    proxy.fail(() => ({ kind: "answer", status: 503, body: errorBody("SlowDown") }));
    const before = proxy.seen.length;
    await expect(blobs.put("down/file", Buffer.from("x"))).rejects.toMatchObject({ name: "SlowDown" });
    expect(proxy.seen.length - before).toBe(4);
  });

  test("an answer that is lost: the same write again", async () => {
    failFirst("PUT", 1, () => ({ kind: "lose answer" }));
    await blobs.put("lost/answer", Buffer.from("x"));
    failFirst("DELETE", 1, () => ({ kind: "lose answer" }));
    await blobs.delete("lost/answer");
    expect(await blobs.info("lost/answer")).toBeNull();
  });

  test("a download that breaks off goes on where it was", async () => {
    const content = Buffer.alloc(3_000_000, "0123456789a");
    await blobs.put("broken/file", content);
    failFirst("GET", 2, () => ({ kind: "cut", afterBytes: 1_000_001 }));
    expect((await blobs.get("broken/file")).equals(content)).toBe(true);
    failFirst("GET", 1, () => ({ kind: "cut", afterBytes: 70_000 }));
    const range = { start: 500, end: 250_000 };
    const part = await buffer(await blobs.stream("broken/file", range));
    expect(part.equals(content.subarray(range.start, range.end + 1))).toBe(true);
  });

  test("a download that always breaks off is an error after a bounded number of tries, and never a short file", async () => {
    await blobs.put("cut/file", Buffer.alloc(1_000_000, "x"));
    proxy.fail((method) => (method === "GET" ? { kind: "cut", afterBytes: 1_000 } : null));
    const before = proxy.seen.length;
    await expect(blobs.get("cut/file")).rejects.toThrow(/aborted|ECONNRESET|terminated|hang up/i);
    expect(proxy.seen.length - before).toBeLessThanOrEqual(4);
  });

  test("a download that breaks off and finds another version is an error, and never a mixture", async () => {
    await blobs.put("changed/file", Buffer.alloc(1_000_000, "a"));
    failFirst("GET", 1, () => ({ kind: "cut", afterBytes: 300_000 }));
    const reading = await blobs.stream("changed/file");
    await blobs.put("changed/file", Buffer.alloc(1_000_000, "b"));
    await expect(buffer(reading)).rejects.toMatchObject({ name: "PreconditionFailed" });
  });

  test("a store that says nothing: tried again, then an error", async () => {
    const impatient = createS3Blobs({ ...optionsFor(proxy.endpoint, "faults"), idleTimeoutMs: 300 });
    await impatient.put("silent/file", Buffer.from("x"));
    failFirst("GET", 2, () => ({ kind: "hang" }));
    expect((await impatient.get("silent/file")).toString()).toBe("x");
    proxy.fail(() => ({ kind: "hang" }));
    await expect(impatient.get("silent/file")).rejects.toMatchObject({ name: "TimeoutError" });
    await expect(impatient.put("silent/file", Buffer.from("y"))).rejects.toMatchObject({ name: "TimeoutError" });
  });

  test("a reader who pauses for longer than a connection may be silent gets everything", async () => {
    const impatient = createS3Blobs({ ...optionsFor(proxy.endpoint, "faults"), idleTimeoutMs: 300 });
    const content = Buffer.alloc(24_000_000, "0123456789a");
    await blobs.put("slow/reader", content);
    const before = proxy.seen.length;
    const chunks: Buffer[] = [];
    for await (const chunk of await impatient.stream("slow/reader")) {
      chunks.push(chunk as Buffer); // no encoding is set
      // The pause is the subject: what is buffered on the way cannot hold the rest.
      if (chunks.length === 3) await delay(1_000);
    }
    expect(Buffer.concat(chunks).equals(content)).toBe(true);
    expect(proxy.seen.length - before).toBeGreaterThan(1);
  });

  test("one part of a large file fails for good: nothing is stored, no part is left, and the file is still there", async () => {
    const path = join(local, "large");
    await writeFile(path, Buffer.alloc(20 * 1024 * 1024, "x"));
    await blobs.put("parts/file", Buffer.from("the version before"));
    proxy.fail((method, url) =>
      method === "PUT" && url.includes("partNumber=2")
        ? { kind: "answer", status: 403, body: errorBody("AccessDenied") }
        : null,
    );
    await expect(blobs.putFile("parts/file", path)).rejects.toMatchObject({ name: "AccessDenied" });
    expect((await blobs.get("parts/file")).toString()).toBe("the version before");
    expect(await readdir(local)).toEqual(["large"]);
    const { Uploads } = await server.client.send(new ListMultipartUploadsCommand({ Bucket: BUCKET }));
    expect(Uploads ?? []).toEqual([]);
    await rm(path);
  });

  test(
    "the store dies in the middle of an upload: an error within bounds, and the file is still there",
    { timeout: 60_000 },
    async () => {
      const other = await startS3Server();
      await other.createBucket(BUCKET);
      const onTheWay = await startFaultProxy(other.endpoint);
      const path = join(local, "unfinished");
      await writeFile(path, Buffer.alloc(40 * 1024 * 1024, "x"));
      const dying = Promise.withResolvers<void>();
      onTheWay.fail((_method, url) => {
        if (url.includes("partNumber=3")) dying.resolve(other.kill());
        return null;
      });
      const upload = createS3Blobs(optionsFor(onTheWay.endpoint)).putFile("dying/file", path);
      await expect(upload).rejects.toThrow(/ECONNREFUSED|ECONNRESET|hang up|aborted/i);
      await dying.promise;
      expect((await readFile(path)).length).toBe(40 * 1024 * 1024);
      await onTheWay.stop();
      await other.stop();
      await rm(path);
    },
  );
});

async function keysOf(blobs: BlobStore, prefix: string): Promise<string[]> {
  const keys: string[] = [];
  for await (const { key } of blobs.list(prefix)) keys.push(key);
  return keys.toSorted();
}

const errorBody = (code: string): string => `<?xml version="1.0"?><Error><Code>${code}</Code></Error>`;

/** The first `times` requests of that method go wrong so. */
function failFirst(method: string, times: number, fault: Parameters<FaultProxy["fail"]>[0]): void {
  let left = times;
  proxy.fail((asked, url) => (asked === method && left-- > 0 ? fault(asked, url) : null));
}
