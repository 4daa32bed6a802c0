/** What every blob store must do; fs.test.ts runs it on a directory, a store in the cloud would run it too. */
import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";

import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { type BlobInfo, BlobNotFound, type BlobStore } from "#blobs/blob-store.ts";

export function blobStoreConformance(name: string, create: () => Promise<BlobStore>): void {
  describe(`blob store: ${name}`, () => {
    let blobs: BlobStore;
    let local: string;
    beforeAll(async () => {
      blobs = await create();
      local = await mkdtemp(join(tmpdir(), "dream-engine-test-blobs-"));
    });
    afterAll(() => rm(local, { recursive: true, force: true }));

    const text = async (key: string): Promise<string> => (await blobs.get(key)).toString();
    async function keys(prefix: string): Promise<string[]> {
      const found: BlobInfo[] = [];
      for await (const info of blobs.list(prefix)) found.push(info);
      return found.map(({ key }) => key).toSorted();
    }

    test("gives back what was put, byte for byte", async () => {
      const body = new Uint8Array(100_000).map((_, i) => (i * 31) % 256);
      await blobs.put("put/bytes.bin", body);
      expect(await blobs.get("put/bytes.bin")).toEqual(Buffer.from(body));
    });

    test("keeps an empty blob", async () => {
      await blobs.put("put/empty", new Uint8Array());
      expect(await blobs.get("put/empty")).toHaveLength(0);
      expect(await blobs.info("put/empty")).toMatchObject({ bytes: 0 });
    });

    test("a second put replaces the first", async () => {
      await blobs.put("put/twice", Buffer.from("first, and longer"));
      await blobs.put("put/twice", Buffer.from("second"));
      expect(await text("put/twice")).toBe("second");
    });

    test("putFile moves a local file into the store", async () => {
      const path = join(local, "video.mp4");
      await writeFile(path, "frames");
      await blobs.put("moved/1/video.mp4", Buffer.from("an older one"));
      await blobs.putFile("moved/1/video.mp4", path);
      expect(await text("moved/1/video.mp4")).toBe("frames");
      expect(await readdir(local)).toEqual([]);
    });

    test("putFile of a file that is not there fails and writes nothing", async () => {
      await expect(blobs.putFile("moved/none", join(local, "none"))).rejects.toThrow("ENOENT");
      expect(await blobs.info("moved/none")).toBeNull();
    });

    test("what is not there is BlobNotFound, or null, or nothing to delete", async () => {
      await blobs.put("there/file", Buffer.from("x"));
      for (const key of ["nothing", "there/nothing", "there", "there/file/below"]) {
        await expect(blobs.get(key)).rejects.toThrow(BlobNotFound);
        await expect(blobs.stream(key)).rejects.toThrow(BlobNotFound);
        expect(await blobs.info(key)).toBeNull();
        await blobs.delete(key);
      }
      expect(await text("there/file")).toBe("x");
    });

    test("tells size and age", async () => {
      const before = Date.now();
      await blobs.put("info/file", Buffer.from("12345"));
      const info = await blobs.info("info/file");
      expect(info).toMatchObject({ key: "info/file", bytes: 5 });
      expect(Math.abs((info?.modified_ms ?? 0) - before)).toBeLessThan(5_000);
    });

    test("streams the whole, or a range with both ends included", async () => {
      await blobs.put("stream/digits", Buffer.from("0123456789"));
      const read = async (range?: { start: number; end: number }): Promise<string> =>
        (await buffer(await blobs.stream("stream/digits", range))).toString();
      expect(await read()).toBe("0123456789");
      expect(await read({ start: 0, end: 0 })).toBe("0");
      expect(await read({ start: 3, end: 5 })).toBe("345");
      expect(await read({ start: 8, end: 100 })).toBe("89");
    });

    test("lists by prefix, across folders and inside a name", async () => {
      for (const key of ["list/a/1", "list/a/2", "list/ab/1", "list/b"]) await blobs.put(key, Buffer.from("x"));
      expect(await keys("list/")).toEqual(["list/a/1", "list/a/2", "list/ab/1", "list/b"]);
      expect(await keys("list/a")).toEqual(["list/a/1", "list/a/2", "list/ab/1"]);
      expect(await keys("list/a/")).toEqual(["list/a/1", "list/a/2"]);
      expect(await keys("list/none/")).toEqual([]);
      expect(await keys("")).toEqual(expect.arrayContaining(["list/b"]));
    });

    test("delete removes one blob and leaves its neighbours", async () => {
      await blobs.put("delete/x/1", Buffer.from("x"));
      await blobs.put("delete/y", Buffer.from("x"));
      await blobs.delete("delete/x/1");
      await blobs.delete("delete/x/1");
      expect(await keys("delete/")).toEqual(["delete/y"]);
      await blobs.put("delete/x/1", Buffer.from("again"));
      expect(await text("delete/x/1")).toBe("again");
    });

    test("a reader sees one whole version while writers replace it", async () => {
      await blobs.put("race/file", version(0));
      const writing = Promise.all(Array.from({ length: 8 }, (_, n) => blobs.put("race/file", version(n))));
      for (let reads = 0; reads < 30; reads += 1) {
        const seen = await blobs.get("race/file");
        expect(seen).toHaveLength(200_000);
        expect(seen.every((byte) => byte === seen[0])).toBe(true);
      }
      await writing;
    });

    test("puts survive deletes of their neighbours, whose empty folders are tidied away", async () => {
      await Promise.all(
        Array.from({ length: 40 }, async (_, n) => {
          await blobs.put(`tidy/same/folder/${n}`, Buffer.from("x"));
          if (n % 2 === 0) await blobs.delete(`tidy/same/folder/${n}`);
        }),
      );
      expect(await keys("tidy/")).toHaveLength(20);
    });

    test.each([
      "",
      "/absolute",
      "../up",
      "a/../../up",
      "a/..",
      "./a",
      "a/./b",
      "a//b",
      "a/",
      ".hidden",
      "a/.hidden",
      "a\\b",
      "a b",
      "a\0b",
      "ä",
      "a\n",
      "x".repeat(201),
    ])("refuses the key %j everywhere", async (key) => {
      await expect(blobs.put(key, Buffer.from("x"))).rejects.toThrow(RangeError);
      await expect(blobs.putFile(key, join(local, "none"))).rejects.toThrow(RangeError);
      await expect(blobs.get(key)).rejects.toThrow(RangeError);
      await expect(blobs.info(key)).rejects.toThrow(RangeError);
      await expect(blobs.stream(key)).rejects.toThrow(RangeError);
      await expect(blobs.delete(key)).rejects.toThrow(RangeError);
    });

    test("refuses a prefix that no key can begin with", async () => {
      await expect(keys("../")).rejects.toThrow(RangeError);
      await expect(keys("/etc/")).rejects.toThrow(RangeError);
    });
  });
}

const version = (n: number): Buffer => Buffer.alloc(200_000, String(n));
