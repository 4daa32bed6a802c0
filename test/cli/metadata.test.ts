/** Which records of a download become its `metadata.parquet`: those whose video is there, whole. */
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { afterEach, beforeEach, expect, test } from "vitest";

import { writeMetadata } from "#cli/datasets/metadata.ts";
import { UserError } from "#cli/user-error.ts";
import { type ResultRecord, resultsJsonl } from "#datasets/results.ts";
import { resultsParquet } from "#datasets/results-parquet.ts";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "dream-metadata-"));
  await mkdir(join(folder, "videos"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const record = (n: number, more: Partial<ResultRecord> = {}): ResultRecord => ({
  row_id: `ep-${n}`,
  n,
  file_name: `videos/ep-${n}.mp4`,
  status: "succeeded",
  error_code: null,
  error_message: null,
  frames: 13,
  charged_mils: 65n,
  refunded_mils: 0n,
  engine_wall_ms: 12.5,
  request_id: "req_1",
  rollout_id: "rollout_1",
  seed: 2n ** 64n - 1n,
  num_steps: 10,
  guidance: 0,
  prompt: "über\u2028 Zeilen",
  video_bytes: 5n,
  metadata: '{"a":1}',
  ...more,
});

async function* pageOf(...records: readonly ResultRecord[]): AsyncGenerator<readonly ResultRecord[]> {
  yield records;
}

async function bytesOf(pieces: AsyncIterable<Buffer>): Promise<Buffer> {
  const all: Buffer[] = [];
  for await (const piece of pieces) all.push(piece);
  return Buffer.concat(all);
}

const write = (): Promise<string> => writeMetadata(folder, join(folder, "results.jsonl"), new AbortController().signal);

test("those of videos that are there, with every digit; and nothing else", async () => {
  await writeFile(join(folder, "videos/ep-1.mp4"), "whole");
  await writeFile(join(folder, "videos/ep-2.mp4"), "torn off");
  const failed = record(4, { status: "failed", file_name: null, video_bytes: null, error_code: "engine_failed" });
  const bad = record(5, { status: "invalid", row_id: null, file_name: null, video_bytes: null, seed: null });
  const results = [record(1), record(2), record(3), failed, bad].map((each) => ({ ...each, video_url: "https://x/" }));
  await writeFile(join(folder, "results.jsonl"), await bytesOf(resultsJsonl(pageOf(...results))));

  const file = await write();
  const expected = await bytesOf(resultsParquet(pageOf(record(1)), { withLinks: false }));
  expect((await readFile(file)).equals(expected)).toBe(true);
  expect(await readdir(folder)).toEqual(expect.arrayContaining(["metadata.parquet", "results.jsonl", "videos"]));
  expect(await readdir(folder)).toHaveLength(3);
});

test.each([
  ["no JSON", "<html>"],
  ["no record", "[1]"],
  ["a path for an id", '{"status":"succeeded","row_id":"../../x"}'],
  ["a line without an end", `{"status":"succeeded","row_id":"${"x".repeat(1024 * 1024)}`],
])("what cannot be read is told, and the metadata from before stay: %s", async (_what, line) => {
  await writeFile(join(folder, "metadata.parquet"), "from before");
  await writeFile(join(folder, "results.jsonl"), line);
  await expect(write()).rejects.toThrow(UserError);
  expect(await readFile(join(folder, "metadata.parquet"), "utf8")).toBe("from before");
  expect((await readdir(folder)).filter((name) => name.endsWith(".part"))).toEqual([]);
});
