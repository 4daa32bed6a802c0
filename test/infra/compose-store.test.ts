/**
 * The blob store of docker-compose.yml itself, VersityGW: it does what every store of ours must, and holds each key to its
 * rights. Where there is none the suite is passed over; docs/deployment.md says how to build one, without Docker.
 */
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";

import type { BlobStore } from "#blobs/blob-store.ts";
import { createS3Blobs } from "#blobs/s3.ts";
import { systemClock } from "#platform/clock.ts";

import { blobStoreConformance } from "../blobs/conformance.ts";
import { hasVersityGw, startVersityGw, type VersityGw } from "../support/versitygw.ts";
import { type WithSecrets, withSecrets } from "./compose-file.ts";

/** More than one part of an upload. */
const LARGE_BYTES = 20_000_000;

describe.skipIf(!(await hasVersityGw()))("VersityGW by infra/compose/s3-start.sh", () => {
  let compose: WithSecrets;
  let server: VersityGw;

  beforeAll(async () => {
    compose = await withSecrets();
    server = await startVersityGw(compose.environmentOf("s3"), compose.environmentOf("bucket"));
  }, 60_000);
  afterAll(async () => {
    vi.unstubAllEnvs();
    await server.stop();
    compose.remove();
  });

  /** With the key of that process; the SDK asks for it with the first request, and keeps it. */
  async function as(service: string): Promise<BlobStore> {
    const { AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY } = compose.environmentOf(service);
    vi.stubEnv("AWS_ACCESS_KEY_ID", AWS_ACCESS_KEY_ID);
    vi.stubEnv("AWS_SECRET_ACCESS_KEY", AWS_SECRET_ACCESS_KEY);
    const store = createS3Blobs({
      bucket: "dream-blobs",
      prefix: "",
      region: "us-east-1",
      endpoint: server.endpoint,
      publicEndpoint: undefined,
      forcePathStyle: true,
      clock: systemClock,
    });
    await store.info("rollouts/nothing");
    return store;
  }

  blobStoreConformance("VersityGW, as a gateway", () => as("gateway"));

  test("a worker reads and writes rollouts, and nothing else", async () => {
    const worker = await as("worker");
    const video = Buffer.alloc(LARGE_BYTES, "video ");
    await worker.put("rollouts/a/1.mp4", video);
    expect((await worker.get("rollouts/a/1.mp4")).equals(video)).toBe(true);
    expect(await worker.info("rollouts/a/none")).toBeNull();
    await expect(worker.delete("rollouts/a/1.mp4")).rejects.toMatchObject({ name: "AccessDenied" });
    await expect(worker.put("datasets/a", video)).rejects.toMatchObject({ name: "AccessDenied" });
    await expect(worker.get("uploads/a")).rejects.toMatchObject({ name: "AccessDenied" });
  });

  test("a notifier reads, and links that it signs are good", async () => {
    const notifier = await as("notifier");
    await expect(notifier.put("rollouts/a/2.mp4", Buffer.from("x"))).rejects.toMatchObject({ name: "AccessDenied" });
    await expect(notifier.delete("rollouts/a/1.mp4")).rejects.toMatchObject({ name: "AccessDenied" });
    const gateway = await as("gateway");
    await gateway.put("rollouts/b/1.mp4", Buffer.from("a video"));
    const link = await notifier.presignedUrl?.("rollouts/b/1.mp4", { lifetimeMs: 60_000, filename: "b.mp4" });
    const reply = await fetch(link ?? "");
    expect([reply.status, reply.headers.get("content-type"), await reply.text()]).toEqual([
      200,
      "video/mp4",
      "a video",
    ]);
  });

  test("nobody gets in without a key", async () => {
    expect((await fetch(`${server.endpoint}/dream-blobs/rollouts/b/1.mp4`)).status).toBe(403);
    expect((await fetch(`${server.endpoint}/dream-blobs?list-type=2`)).status).toBe(403);
  });
});
