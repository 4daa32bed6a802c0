import { mkdir, mkdtemp, readdir, rm, stat, symlink, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { afterAll, expect, test } from "vitest";

import { BlobNotFound } from "#blobs/blob-store.ts";
import { createFsBlobs } from "#blobs/fs.ts";

import { blobStoreConformance } from "./conformance.ts";

const roots: string[] = [];
async function newRoot(): Promise<string> {
  const root = await mkdtemp(join(tmpdir(), "dream-engine-test-root-"));
  roots.push(root);
  return root;
}
afterAll(() => Promise.all(roots.map((root) => rm(root, { recursive: true, force: true }))));

blobStoreConformance("directory", async () => createFsBlobs(join(await newRoot(), "made", "on", "demand")));

test("nothing temporary is left behind, and empty folders are gone", async () => {
  const root = await newRoot();
  const blobs = createFsBlobs(root);
  await blobs.put("rollouts/a/1/video", Buffer.from("x"));
  await blobs.delete("rollouts/a/1/video");
  expect(await readdir(root)).toEqual([".incoming"]);
  expect(await readdir(join(root, ".incoming"))).toEqual([]);
});

test("a failed write leaves the old version and no temporary file", async () => {
  const root = await newRoot();
  const blobs = createFsBlobs(root);
  await blobs.put("a/b", Buffer.from("old"));
  await expect(blobs.put("a/b/c", Buffer.from("a key below a key"))).rejects.toThrow(/EEXIST|ENOTDIR/);
  expect((await blobs.get("a/b")).toString()).toBe("old");
  expect(await readdir(join(root, ".incoming"))).toEqual([]);
});

test("what a dead process left half written is removed by the next one, a day later", async () => {
  const root = await newRoot();
  const incoming = join(root, ".incoming");
  await mkdir(incoming);
  for (const name of ["old", "new"]) await writeFile(join(incoming, name), "half");
  const twoDaysAgo = new Date(Date.now() - 2 * 24 * 3_600_000);
  await utimes(join(incoming, "old"), twoDaysAgo, twoDaysAgo);
  await createFsBlobs(root).put("x", Buffer.from("x"));
  expect(await readdir(incoming)).toEqual(["new"]);
});

test.runIf(process.platform === "linux")("a file on another file system is copied into place", async () => {
  const folder = await mkdtemp("/dev/shm/dream-engine-"); // Linux has one there
  roots.push(folder);
  const path = join(folder, "video");
  await writeFile(path, "frames");
  const blobs = createFsBlobs(await newRoot());
  await blobs.putFile("rollouts/a/video", path);
  expect((await blobs.get("rollouts/a/video")).toString()).toBe("frames");
  expect(await readdir(folder)).toEqual([]);
});

test("a copy shares its file with the original, and leaves nothing behind, made again or failed", async () => {
  const root = await newRoot();
  const blobs = createFsBlobs(root);
  await blobs.put("rollouts/a/video", Buffer.from("frames"));
  for (let again = 0; again < 3; again += 1) await blobs.copy("rollouts/a/video", "datasets/b/video");
  await blobs.copy("rollouts/a/video", "rollouts/a/video");
  await expect(blobs.copy("rollouts/none", "datasets/b/video")).rejects.toThrow(BlobNotFound);
  await expect(blobs.copy("rollouts/a", "datasets/b/video")).rejects.toThrow(BlobNotFound);
  expect((await stat(join(root, "rollouts/a/video"))).nlink).toBe(2);
  expect(await readdir(join(root, ".incoming"))).toEqual([]);
  expect((await blobs.get("datasets/b/video")).toString()).toBe("frames");
});

test("a copy of an old blob is as new as any blob that was just written", async () => {
  const root = await newRoot();
  const blobs = createFsBlobs(root);
  await blobs.put("rollouts/a/video", Buffer.from("frames"));
  const lastWeek = new Date(Date.now() - 7 * 24 * 3_600_000);
  await utimes(join(root, "rollouts/a/video"), lastWeek, lastWeek);
  await blobs.copy("rollouts/a/video", "datasets/b/video");
  expect(Date.now() - ((await blobs.info("datasets/b/video"))?.modified_ms ?? 0)).toBeLessThan(60_000);
});

test.runIf(process.platform === "linux")("a copy across file systems is a file of its own", async () => {
  const folder = await mkdtemp("/dev/shm/dream-engine-"); // Linux has one there
  roots.push(folder);
  const root = await newRoot();
  await symlink(folder, join(root, "elsewhere"));
  const blobs = createFsBlobs(root);
  await blobs.put("here/video", Buffer.from("frames"));
  await writeFile(join(folder, "far"), "far away");
  await blobs.copy("elsewhere/far", "here/video");
  expect((await blobs.get("here/video")).toString()).toBe("far away");
  expect((await stat(join(root, "here/video"))).nlink).toBe(1);
  expect(await readdir(join(root, ".incoming"))).toEqual([]);
});

test("a file that is no blob of ours is not listed", async () => {
  const root = await newRoot();
  const blobs = createFsBlobs(root);
  await blobs.put("a/b", Buffer.from("x"));
  await writeFile(join(root, "a", "not a blob"), "x");
  const keys = [];
  for await (const { key } of blobs.list("")) keys.push(key);
  expect(keys).toEqual(["a/b"]);
});
