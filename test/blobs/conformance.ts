/** What every blob store must do; fs.test.ts runs it on a directory, s3.test.ts on a bucket. */
import { createHash } from "node:crypto";
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
        await expect(blobs.copy(key, "there/copy")).rejects.toThrow(BlobNotFound);
        expect(await blobs.info(key)).toBeNull();
        await blobs.delete(key);
      }
      expect(await keys("there/")).toEqual(["there/file"]);
      expect(await text("there/file")).toBe("x");
    });

    test("a copy is the same content under another key, and replaces what was there", async () => {
      await blobs.put("copy/from", Buffer.from("frames"));
      await blobs.put("copy/to/old", Buffer.from("something longer than that"));
      await blobs.copy("copy/from", "copy/to/new");
      await blobs.copy("copy/from", "copy/to/old");
      expect(await text("copy/to/new")).toBe("frames");
      expect(await text("copy/to/old")).toBe("frames");
      expect(await text("copy/from")).toBe("frames");
    });

    test("a copy made again, or onto itself, changes nothing", async () => {
      await blobs.put("recopy/from", Buffer.from("frames"));
      for (const to of ["recopy/to", "recopy/to", "recopy/from"]) await blobs.copy("recopy/from", to);
      await expect(blobs.copy("recopy/none", "recopy/none")).rejects.toThrow(BlobNotFound);
      expect(await keys("recopy/")).toEqual(["recopy/from", "recopy/to"]);
      expect(await text("recopy/from")).toBe("frames");
      expect(await text("recopy/to")).toBe("frames");
    });

    test("original and copy live on by themselves", async () => {
      const path = join(local, "newer.mp4");
      for (const key of ["apart/a", "apart/b", "apart/c"]) await blobs.put(key, Buffer.from("old"));
      for (const key of ["apart/a", "apart/b", "apart/c"]) await blobs.copy(key, `${key}.copy`);
      await blobs.put("apart/a", Buffer.from("new"));
      await blobs.delete("apart/b");
      await writeFile(path, "new");
      await blobs.putFile("apart/c.copy", path);
      expect(await text("apart/a.copy")).toBe("old");
      expect(await text("apart/b.copy")).toBe("old");
      expect(await text("apart/c")).toBe("old");
      expect(await text("apart/c.copy")).toBe("new");
    });

    test("a large file arrives whole, and can be read in ranges and copied", { timeout: 60_000 }, async () => {
      const bytes = Buffer.alloc(21 * 1024 * 1024 + 17, "0123456789abcdef-");
      const path = join(local, "large.mp4");
      await writeFile(path, bytes);
      await blobs.putFile("large/video.mp4", path);
      await blobs.copy("large/video.mp4", "large/copy.mp4");
      expect(await readdir(local)).toEqual([]);
      for (const key of ["large/video.mp4", "large/copy.mp4"]) {
        expect(await blobs.info(key)).toMatchObject({ bytes: bytes.length });
        expect(sha256(await blobs.get(key))).toBe(sha256(bytes));
      }
      const middle = { start: 8 * 1024 * 1024 - 3, end: 16 * 1024 * 1024 + 3 };
      const part = await buffer(await blobs.stream("large/video.mp4", middle));
      expect(sha256(part)).toBe(sha256(bytes.subarray(middle.start, middle.end + 1)));
    });

    test("an empty and a small file are moved, too", async () => {
      for (const content of ["", "x"]) {
        const path = join(local, "small");
        await writeFile(path, content);
        await blobs.putFile("moved/small", path);
        expect(await text("moved/small")).toBe(content);
      }
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
      expect(await read({ start: 9, end: 9 })).toBe("9");
    });

    test("a range that begins behind the last byte is empty; one without a byte in it is refused", async () => {
      await blobs.put("range/digits", Buffer.from("0123456789"));
      await blobs.put("range/empty", new Uint8Array());
      expect(await buffer(await blobs.stream("range/digits", { start: 10, end: 12 }))).toHaveLength(0);
      expect(await buffer(await blobs.stream("range/empty", { start: 0, end: 0 }))).toHaveLength(0);
      expect(await buffer(await blobs.stream("range/empty"))).toHaveLength(0);
      for (const range of [
        { start: 3, end: 2 },
        { start: -1, end: 2 },
        { start: 0.5, end: 2 },
        { start: 0, end: NaN },
      ]) {
        await expect(blobs.stream("range/digits", range)).rejects.toThrow(RangeError);
      }
      await expect(blobs.stream("range/none", { start: 0, end: 0 })).rejects.toThrow(BlobNotFound);
    });

    test("a stream that is given up, begun or not, harms nobody", async () => {
      await blobs.put("given-up/file", Buffer.alloc(5_000_000, "x"));
      const unread = await blobs.stream("given-up/file");
      unread.destroy();
      const begun = await blobs.stream("given-up/file");
      for await (const chunk of begun) {
        expect((chunk as Buffer).length).toBeGreaterThan(0);
        break; // which destroys it
      }
      expect(begun.destroyed).toBe(true);
      expect(await blobs.get("given-up/file")).toHaveLength(5_000_000);
    });

    test("a reader gets to the end of the version it began, or an error, whatever is written meanwhile", async () => {
      const bytes = 5_000_000;
      await blobs.put("long-read/file", Buffer.alloc(bytes, "a"));
      const reading = await blobs.stream("long-read/file");
      await blobs.put("long-read/file", Buffer.alloc(bytes, "b"));
      await blobs.delete("long-read/file");
      const seen = await buffer(reading);
      expect(seen).toHaveLength(bytes);
      expect(seen.every((byte) => byte === seen[0])).toBe(true);
    });

    test("lists by prefix, across folders and inside a name", async () => {
      for (const key of ["list/a/1", "list/a/2", "list/ab/1", "list/b"]) await blobs.put(key, Buffer.from("x"));
      expect(await keys("list/")).toEqual(["list/a/1", "list/a/2", "list/ab/1", "list/b"]);
      expect(await keys("list/a")).toEqual(["list/a/1", "list/a/2", "list/ab/1"]);
      expect(await keys("list/a/")).toEqual(["list/a/1", "list/a/2"]);
      expect(await keys("list/none/")).toEqual([]);
      expect(await keys("list/b")).toEqual(["list/b"]);
      expect(await keys("list/b/")).toEqual([]);
      expect(await keys("list/bc")).toEqual([]);
      expect(await keys("")).toEqual(expect.arrayContaining(["list/b"]));
    });

    test("a key that is the beginning of another's name is a blob like any other", async () => {
      for (const key of ["names/a", "names/a.json", "names/a-b/c", "names/_", "names/A"]) {
        await blobs.put(key, Buffer.from(key));
      }
      expect(await keys("names/a")).toEqual(["names/a", "names/a-b/c", "names/a.json"]);
      await blobs.delete("names/a");
      expect(await keys("names/")).toEqual(["names/A", "names/_", "names/a-b/c", "names/a.json"]);
    });

    test("lists sizes and ages, and more than fit a page of an answer", { timeout: 60_000 }, async () => {
      const before = Date.now();
      const many = Array.from({ length: 1_050 }, (_, n) => `pages/${String(n).padStart(4, "0")}`);
      await inTurns(16, many, (key) => blobs.put(key, Buffer.from(key)));
      const found: BlobInfo[] = [];
      for await (const info of blobs.list("pages/")) found.push(info);
      expect(found.map(({ key }) => key).toSorted()).toEqual(many);
      expect(found.every(({ bytes }) => bytes === "pages/0000".length)).toBe(true);
      expect(found.every(({ modified_ms }) => Math.abs(modified_ms - before) < 60_000)).toBe(true);
    });

    test("what is deleted while it is listed spoils nothing", async () => {
      for (let n = 0; n < 20; n += 1) await blobs.put(`sweep/${n}`, Buffer.from("x"));
      for await (const { key } of blobs.list("sweep/")) await blobs.delete(key);
      expect(await keys("sweep/")).toEqual([]);
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
      await expect(blobs.copy(key, "refused/copy")).rejects.toThrow(RangeError);
      await expect(blobs.copy("refused/original", key)).rejects.toThrow(RangeError);
    });

    test("refuses a prefix that no key can begin with", async () => {
      await expect(keys("../")).rejects.toThrow(RangeError);
      await expect(keys("/etc/")).rejects.toThrow(RangeError);
      await expect(keys("a//")).rejects.toThrow(RangeError);
    });
  });
}

const sha256 = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex");

/** `run` for each item, `atOnce` at a time. */
async function inTurns<T>(atOnce: number, items: readonly T[], run: (item: T) => Promise<void>): Promise<void> {
  const left = items.values();
  const worker = async (): Promise<void> => {
    for (const item of left) await run(item);
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
}

const version = (n: number): Buffer => Buffer.alloc(200_000, String(n));
