/** Archives come in: each container in any order of entries, and those that are made to do harm. */
import { readdir } from "node:fs/promises";
import { tmpdir } from "node:os";
import { deflateRawSync, gzipSync } from "node:zlib";

import type { LightMyRequestResponse } from "fastify";
import { pack } from "tar-stream";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { blobKeys } from "#contract/jobs.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { eventually } from "#test/gateway/support/books.ts";
import { actionsFile } from "#test/gateway/support/npy-writer.ts";
import { framePng, getWithKey } from "#test/gateway/support/requests.ts";
import { startTestGateway, type TestGateway } from "#test/gateway/support/test-gateway.ts";

import { lines, sendDataset } from "./support/send.ts";
import { zip, type ZipEntry } from "./support/zip-writer.ts";

let t: TestGateway;
let key: CreatedKey;
let png: Buffer;
beforeAll(async () => {
  t = await startTestGateway();
  key = await t.newKey();
  png = await framePng();
});
afterAll(() => t.stop());

type Entry = ZipEntry & {
  readonly type?: "symlink" | "directory" | "link" | "fifo";
  readonly pax?: Readonly<Record<string, string>>;
};

async function tar(entries: readonly Entry[]): Promise<Buffer> {
  const packed = pack();
  for (const { name, body = "", type, pax } of entries) {
    if (type === undefined) packed.entry({ name, ...(pax && { pax }) }, Buffer.from(body));
    else packed.entry({ name, type, ...(type === "symlink" || type === "link" ? { linkname: "/etc/passwd" } : {}) });
  }
  packed.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of packed) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

const CONTAINERS = {
  zip: async (entries: readonly Entry[]) => zip(entries),
  "stored zip": async (entries: readonly Entry[]) => zip(entries.map((entry) => ({ ...entry, stored: true }))),
  tar,
  "tar.gz": async (entries: readonly Entry[]) => gzipSync(await tar(entries)),
} as const;

const send = (body: Buffer, params?: object): Promise<LightMyRequestResponse> =>
  sendDataset(t, key.api_key, { name: "archive", body, filename: "a" }, params);

const rowsOf = async (id: string): Promise<{ n: number; id: string; state: string }[]> =>
  (await getWithKey(t.app, `/v1/datasets/${id}/rows`, key.api_key)).json().data;

const pair = (name: string, count = 12, extension = "png"): Entry[] => [
  { name: `${name}.${extension}`, body: png },
  { name: `${name}.npy`, body: actionsFile(count, 2) },
];

describe.each(Object.entries(CONTAINERS))("a %s", (_name, packed) => {
  test("of pairs in any order and folder becomes rows in the order of their names", async () => {
    const entries: Entry[] = [
      { name: "set/", type: "directory" },
      ...pair("set/c", 24, "JPG").toReversed(),
      { name: "__MACOSX/set/._a.png", body: "junk" },
      { name: "set/.DS_Store", body: "junk" },
      { name: "set/README.md", body: "hello" },
      { name: "frames/a.jpeg", body: png },
      { name: "frames/b.png", body: png },
      { name: "actions/b.npy", body: actionsFile(36, 2) },
      { name: "actions/a.npy", body: actionsFile(12, 2) },
    ];
    const answer = await send(await packed(entries.filter(({ type }) => type === undefined || packed === tar)), {
      seed: 5,
    });
    expect(answer.statusCode, answer.body).toBe(201);
    const dataset = answer.json();
    expect(dataset).toMatchObject({
      state: "running",
      rows: { total: 3, invalid: 0, pending: 3 },
      frames: { expected: 13 + 37 + 25, rows_unmeasured: 0 },
      message: expect.stringMatching(/were ignored \(1\): set\/README\.md$/),
    });
    expect(await rowsOf(dataset.id)).toMatchObject([
      { n: 1, id: "a", num_actions: 12, seed: 5 },
      { n: 2, id: "b", num_actions: 36 },
      { n: 3, id: "c", num_actions: 24 },
    ]);
    const stored = await t.db.query<{ source: { frame: { key: string }; actions: { key: string } } }>(
      `SELECT source FROM dataset_rows WHERE dataset_id = $1 ORDER BY n`,
      [dataset.id],
    );
    for (const [index, { source }] of stored.entries()) {
      expect(await t.blobs.get(source.frame.key)).toEqual(png);
      expect(await t.blobs.get(source.actions.key)).toEqual(actionsFile([12, 36, 24][index] ?? 0, 2));
    }
    expect(await t.db.query(`SELECT FROM dataset_files`)).toEqual([]);
  });

  test("with halves, doubles and bad files says what is wrong with each", async () => {
    const answer = await send(
      await packed([
        ...pair("good"),
        { name: "no-actions.png", body: png },
        { name: "no-frame.npy", body: actionsFile(12, 2) },
        { name: "x/double.png", body: png },
        { name: "y/double.png", body: png },
        { name: "double.npy", body: actionsFile(12, 2) },
        { name: "words.png", body: "hello" },
        { name: "words.npy", body: actionsFile(12, 2) },
        { name: "odd.png", body: png },
        { name: "odd.npy", body: actionsFile(13, 2) },
        ...pair("spaces in it"),
      ]),
    );
    expect(answer.statusCode, answer.body).toBe(201);
    expect(answer.json().rows).toMatchObject({ total: 7, invalid: 6, pending: 1 });
    const problems = answer.json().problems as { id: string | null; code: string; message: string }[];
    expect(Object.fromEntries(problems.map(({ id, message }) => [id, message]))).toMatchObject({
      "no-actions": "no-actions.png: expected actions beside it: no-actions.npy",
      "no-frame": "no-frame.npy: expected a frame beside it: no-frame.png or no-frame.jpg",
      double: "expected one frame and one actions file of a name, got x/double.png, y/double.png, double.npy",
      words: "words.png: start_frame: expected a PNG or JPEG image, got 5 bytes of something else",
      odd: expect.stringMatching(/^odd\.npy: actions: expected shape \(T, 2\) with T a positive multiple of 12/),
      null: expect.stringMatching(/^spaces in it\.png: expected a name of 1 to 100 letters/),
    });
  });

  test.for(["first", "last"])("may bring its manifest %s", async (where) => {
    const manifest: Entry = {
      name: "set/manifest.jsonl",
      body: lines([
        { id: "one", start_frame: { file: "set/f/shared.png" }, actions: { file: "set/a/1.npy" }, seed: 1 },
        { id: "two", start_frame: { file: "set/f/shared.png" }, actions: { file: "set/a/2.npy" }, metadata: { n: 2 } },
        { id: "gone", start_frame: { file: "set/f/gone.png" }, actions: { file: "set/a/2.npy" } },
        { id: "crossed", start_frame: { file: "set/a/1.npy" }, actions: { file: "set/a/2.npy" } },
        { id: "bad", start_frame: { file: "set/f/shared.png" }, actions: { file: "set/a/bad.npy" } },
        { id: "away", start_frame: { url: "https://example.com/f.png" }, actions: { file: "set/a/1.npy" } },
      ]),
    };
    const files: Entry[] = [
      { name: "set/a/1.npy", body: actionsFile(12, 2) },
      { name: "set/f/shared.png", body: png },
      { name: "set/a/bad.npy", body: actionsFile(12, 3) },
      { name: "set/a/2.npy", body: actionsFile(24, 2) },
    ];
    const answer = await send(await packed(where === "first" ? [manifest, ...files] : [...files, manifest]));
    expect(answer.statusCode, answer.body).toBe(201);
    const { id, rows, problems, frames } = answer.json();
    expect(rows).toMatchObject({ total: 6, invalid: 3, pending: 3 });
    expect(frames).toMatchObject({ expected: 13 + 25 + 13 });
    expect(problems).toMatchObject([
      {
        line: 3,
        id: "gone",
        message: 'start_frame.file: the archive has no file "set/f/gone.png" (PNG, JPEG or .npy)',
      },
      { line: 4, id: "crossed", message: 'start_frame.file: expected a PNG or JPEG, got "set/a/1.npy"' },
      { line: 5, id: "bad", message: expect.stringMatching(/^set\/a\/bad\.npy: actions: expected shape \(T, 2\)/) },
    ]);
    const place = where === "first" ? 3 : 2;
    const [one] = await t.db.query<{ source: object }>(
      `SELECT source FROM dataset_rows WHERE dataset_id = $1 AND n = 1`,
      [id],
    );
    expect(one?.source).toMatchObject({ frame: { key: blobKeys.datasetInput(id, place, "frame") } });
  });

  test("that is cut off anywhere makes nothing", async () => {
    const whole = await packed([...pair("a"), ...pair("b")]);
    for (const part of [0.1, 0.4, 0.7, 0.95]) {
      const answer = await send(whole.subarray(0, Math.floor(whole.length * part)));
      // A tar may end anywhere between its entries; what it holds until there is whole.
      if (answer.statusCode === 201 && packed === tar) continue;
      expect(answer.statusCode, `${part}: ${answer.body}`).toBe(422);
      expect(answer.json().error.code).toBe("dataset_rejected");
    }
  });
});

describe("refused as a whole", () => {
  const cases: readonly (readonly [string, () => Promise<Buffer>, RegExp])[] = [
    ["something else", async () => Buffer.from("hello".repeat(200)), /^archive: expected a zip, a tar or a tar\.gz/],
    ["nothing", async () => Buffer.alloc(0), /^archive: expected a zip/],
    ["an empty zip", async () => zip([]), /^expected at least one row, got none/],
    [
      "a zip with a path out of it",
      async () => zip([{ name: "../../evil.png", body: png }]),
      /damaged \(invalid relative path|inside the archive/,
    ],
    [
      "a zip with an absolute path",
      async () => zip([{ name: "/etc/cron.d/evil.png", body: png }]),
      /damaged \(absolute path|inside the archive/,
    ],
    [
      "a zip with a backslash",
      async () => zip([{ name: "..\\evil.png", body: png }]),
      /damaged \(invalid characters|inside the archive/,
    ],
    [
      "a tar with a path out of it",
      () => tar([{ name: "../../evil.png", body: png }]),
      /inside the archive, got "\.\.\/\.\.\/evil\.png"/,
    ],
    ["a tar with an absolute path", () => tar([{ name: "/etc/evil.png", body: png }]), /inside the archive/],
    [
      "a name of a kilobyte",
      () => tar([{ name: `${"x".repeat(1000)}.png`, body: png }]),
      /names of at most 500 characters/,
    ],
    [
      "a tar with hundreds of extended fields",
      () => tar([...pair("a"), { name: "b.png", body: png, pax: fields(300) }]),
      /expected at most 200 extended fields of an entry/,
    ],
    [
      "a tar with megabytes of extended fields, packed to little",
      async () => gzipSync(await tar([...pair("a"), { name: "b.png", body: png, pax: fields(200_000) }])),
      /extended fields of an entry, in at most 131072 bytes/,
    ],
    [
      "two manifests",
      () =>
        tar([
          { name: "a/manifest.jsonl", body: "{}" },
          { name: "manifest.jsonl", body: "{}" },
        ]),
      /expected one manifest\.jsonl/,
    ],
    [
      "gzip that is no tar",
      async () => gzipSync(Buffer.from("hello".repeat(1000))),
      /expected a readable gzipped tar; it is damaged/,
    ],
    [
      "damaged gzip",
      async () => {
        const bytes = gzipSync(await tar(pair("a")));
        return bytes.fill(0x55, 150, 200);
      },
      /damaged/,
    ],
  ];
  test.for(cases)("%s", async ([, body, message]) => {
    const answer = await send(await body());
    expect(answer.statusCode, answer.body).toBe(422);
    expect(answer.json().error).toMatchObject({ code: "dataset_rejected", message: expect.stringMatching(message) });
  });

  test("leave nothing behind: no files, no inputs, nothing on disk", async () => {
    await send(await tar([...pair("a"), { name: "/evil.png", body: png }]));
    const [rejected] = await t.db.query<{ id: string; state: string; message: string }>(
      `SELECT id, state, message FROM datasets WHERE customer_id = $1 ORDER BY created_at DESC LIMIT 1`,
      [key.customer_id],
    );
    expect(rejected).toMatchObject({ state: "rejected", message: expect.stringMatching(/inside the archive/) });
    expect(await t.db.query(`SELECT FROM dataset_files`)).toEqual([]);
    const stored = async (): Promise<number> => {
      let count = 0;
      for await (const _blob of t.blobs.list(`datasets/${rejected?.id}/`)) count += 1;
      return count;
    };
    expect(await eventually(stored, (count) => count === 0)).toBe(0);
    const spools = (await readdir(tmpdir())).filter((name) => name.startsWith("dream-engine-dataset-"));
    // Another test file may be spooling its own now.
    await eventually(
      async () => (await readdir(tmpdir())).filter((name) => spools.includes(name)),
      (left) => left.length === 0,
    );
  });

  test("a manifest that is an archive, and the other way round", async () => {
    const answer = await sendDataset(t, key.api_key, { name: "manifest", body: zip(pair("a")) });
    expect(answer.json().error.message).toBe('manifest: expected JSON lines, got a zip; send archives as "archive"');
    const other = await send(Buffer.from(lines([{ id: "a" }])));
    expect(other.json().error.message).toMatch(/^archive: expected a zip, a tar or a tar\.gz, got something else/);
  });
});

const fields = (count: number): Record<string, string> =>
  Object.fromEntries(Array.from({ length: count }, (_unused, n) => [`key-${n}`, "value"]));

test("a tar with extended fields, long names and megabytes of padding is as good as any", async () => {
  const name = "x".repeat(90);
  const folder = "deep/".repeat(70);
  const whole = await tar([
    { name: `${folder}${name}.png`, body: png, pax: fields(20) },
    { name: `${folder}${name}.npy`, body: actionsFile(12, 2) },
  ]);
  const answer = await send(Buffer.concat([whole, Buffer.alloc(3 * 1024 * 1024)]));
  expect(answer.json()).toMatchObject({ rows: { total: 1, invalid: 0 } });
});

test("text that cannot be stored makes bad rows, in a file's header and in a manifest's names", async () => {
  const header = "{'descr': 'a\0b', 'fortran_order': False, 'shape': (12, 2), }\n";
  const npy = Buffer.from(`\x93NUMPY\x01\x00${String.fromCodePoint(header.length, 0)}${header}`, "latin1");
  const pairs = await send(await tar([...pair("a"), { name: "b.png", body: png }, { name: "b.npy", body: npy }]));
  expect(pairs.statusCode, pairs.body).toBe(201);
  expect(pairs.json().problems).toMatchObject([{ id: "b", message: expect.stringContaining("got dtype a\uFFFDb") }]);

  const row = { id: "d", start_frame: { file: "a.png" }, actions: { file: "a.npy" } };
  const bad = { ...row, id: "c", start_frame: { file: "a\0.png" } };
  const named = await send(await tar([...pair("a"), { name: "manifest.jsonl", body: lines([row, bad]) }]));
  expect(named.statusCode, named.body).toBe(201);
  expect(named.json().problems).toMatchObject([{ id: "c", message: expect.stringMatching(/^start_frame: expected/) }]);
});

describe("entries that lie are bad rows", () => {
  const bomb = deflateRawSync(Buffer.alloc(40 * 1024 * 1024));
  const cases: readonly (readonly [string, Entry, RegExp])[] = [
    ["encrypted", { name: "a.png", body: "x", encrypted: true }, /without a password/],
    ["of an unknown method", { name: "a.png", body: "x", method: 14 }, /got compression method 14/],
    ["a symlink", { name: "a.png", body: "/etc/passwd", unixMode: 0o120777 }, /got a symlink/],
    [
      "a bomb that says so",
      { name: "a.png", raw: bomb, size: 40 * 1024 * 1024, crc: 0 },
      /expected at most 33554432 bytes, got 41943040/,
    ],
    ["a bomb that lies", { name: "a.png", raw: bomb, size: 1000, crc: 0 }, /damaged here \(too many bytes/],
    [
      "shorter than they say",
      { name: "a.png", raw: deflateRawSync(Buffer.from("half")), size: 1_000_000, crc: 0 },
      /damaged here/,
    ],
    [
      "with another checksum",
      { name: "a.png", raw: deflateRawSync(Buffer.from("x")), size: 1, crc: 7 },
      /checksum differs/,
    ],
    ["no deflate at all", { name: "a.png", raw: Buffer.from("hello, world"), size: 100, crc: 0 }, /damaged here/],
  ];
  test.for(cases)("a zip entry that is %s", async ([, entry, message]) => {
    const actions = { name: "a.npy", body: actionsFile(12, 2) };
    const answer = await send(zip([entry, ...pair("b"), actions]));
    expect(answer.statusCode, answer.body).toBe(201);
    expect(answer.json().rows).toMatchObject({ total: 2, invalid: 1, pending: 1 });
    expect(answer.json().problems[0]).toMatchObject({ id: "a", message: expect.stringMatching(message) });
  });

  test.for(["symlink", "link", "fifo"] as const)("a tar entry that is a %s", async (type) => {
    const answer = await send(
      await tar([{ name: "a.png", type }, { name: "a.npy", body: actionsFile(12, 2) }, ...pair("b")]),
    );
    expect(answer.json().rows).toMatchObject({ total: 2, invalid: 1, pending: 1 });
    expect(answer.json().problems[0]).toMatchObject({
      id: "a",
      message: expect.stringMatching(/^a\.png: expected a file, got a/),
    });
  });

  test("a tar entry of 40 MB", async () => {
    const answer = await send(
      gzipSync(
        await tar([
          { name: "a.png", body: Buffer.alloc(40 * 1024 * 1024) },
          { name: "a.npy", body: actionsFile(12, 2) },
          ...pair("b"),
        ]),
      ),
    );
    expect(answer.json().rows).toMatchObject({ total: 2, invalid: 1, pending: 1 });
    expect(answer.json().problems[0].message).toMatch(/^a\.png: expected at most 33554432 bytes/);
  });
});

test("several hundred pairs, frames first and actions after them", async () => {
  const names = Array.from({ length: 600 }, (_unused, index) => `ep-${String(index).padStart(4, "0")}`);
  const actions = actionsFile(12, 2);
  const body = await tar([
    ...names.map((name) => ({ name: `frames/${name}.png`, body: png })),
    ...names.toReversed().map((name) => ({ name: `actions/${name}.npy`, body: actions })),
  ]);
  const answer = await send(gzipSync(body), { start: false });
  expect(answer.json()).toMatchObject({ state: "ready", rows: { total: 600, invalid: 0 } });
  const ids = await t.db.query<{ row_id: string }>(`SELECT row_id FROM dataset_rows WHERE dataset_id = $1 ORDER BY n`, [
    answer.json().id,
  ]);
  expect(ids.map(({ row_id }) => row_id)).toEqual(names);
});
