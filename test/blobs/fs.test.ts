import { mkdir, mkdtemp, readdir, rm, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { afterAll, expect, test } from "vitest";

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
