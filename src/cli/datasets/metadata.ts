/**
 * `metadata.parquet` of a downloaded folder: a record for each video that is in it, as the loader of Hugging Face's
 * `datasets` wants it. Made of the results here, because only here is known which videos have come.
 */
import { createReadStream, createWriteStream } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";

import { type Static, Type } from "typebox";
import { Compile } from "typebox/compile";

import { parseWireJson } from "#contract/wire-json.ts";
import { Nullable } from "#contract/nullable.ts";
import { createLineSplitter } from "#datasets/line-splitter.ts";
import { ROW_ID } from "#datasets/manifest-row.ts";
import type { ResultRecord } from "#datasets/results.ts";
import { resultsParquet } from "#datasets/results-parquet.ts";
import { errorCode } from "#platform/error-code.ts";

import { sizeOf } from "../api/download.ts";
import { UserError } from "../user-error.ts";

/** A record of the results, of a row with a video. */
const Done = Type.Object({
  row_id: Type.String(),
  n: Type.Integer(),
  file_name: Type.String(),
  status: Type.Literal("succeeded"),
  frames: Nullable(Type.Integer()),
  charged_mils: Type.Integer(),
  refunded_mils: Type.Integer(),
  engine_wall_ms: Nullable(Type.Number()),
  request_id: Nullable(Type.String()),
  rollout_id: Nullable(Type.String()),
  /** Of 64 bits. */
  seed: Type.Union([Type.Integer(), Type.BigInt(), Type.Null()]),
  num_steps: Nullable(Type.Integer()),
  guidance: Nullable(Type.Number()),
  prompt: Nullable(Type.String()),
  video_bytes: Type.Integer(),
  metadata: Type.String(),
});
const done = Compile(Done);
const anyRecord = Compile(Type.Object({ status: Type.String() }));

/** Of a line of results; a row has a prompt and metadata, both bounded. */
const LINE_BYTES_MAX = 1024 * 1024;
const RECORDS_PER_PAGE = 1_000;

/** `results`: the file of JSON lines in `folder`. Resolves with the file written. */
export async function writeMetadata(folder: string, results: string, signal: AbortSignal): Promise<string> {
  const file = join(folder, "metadata.parquet");
  const part = join(folder, ".metadata.parquet.part");
  const pieces = resultsParquet(recordsInFolder(folder, results), { withLinks: false });
  try {
    await pipeline(Readable.from(pieces, { objectMode: false }), createWriteStream(part), { signal });
    await rename(part, file);
  } catch (error) {
    signal.throwIfAborted();
    const code = errorCode(error);
    throw code === undefined ? error : new UserError(`Cannot write ${file}: ${code}.`, { cause: error });
  } finally {
    await rm(part, { force: true });
  }
  return file;
}

/** Records whose video is in the folder, whole: what could not be fetched, and what ended since, is not. */
async function* recordsInFolder(folder: string, results: string): AsyncGenerator<readonly ResultRecord[]> {
  let page: ResultRecord[] = [];
  for await (const line of linesOf(results)) {
    const record = recordIn(line);
    if (record !== null && record.status !== "succeeded") continue;
    if (!done.Check(record) || !ROW_ID.test(record.row_id)) {
      throw new UserError(`${results} is not as it should be: the server sent a record of a row that cannot be read.`);
    }
    if ((await sizeOf(join(folder, "videos", `${record.row_id}.mp4`))) !== record.video_bytes) continue;
    page.push(recordOf(record));
    if (page.length < RECORDS_PER_PAGE) continue;
    yield page;
    page = [];
  }
  yield page;
}

function recordIn(line: string): { readonly status: string } | null {
  try {
    const record = parseWireJson(line);
    return anyRecord.Check(record) ? record : null;
  } catch {
    return null;
  }
}

async function* linesOf(file: string): AsyncGenerator<string> {
  const splitter = createLineSplitter(LINE_BYTES_MAX);
  for await (const chunk of createReadStream(file) as AsyncIterable<Buffer>) yield* textsOf(splitter.push(chunk));
  yield* textsOf(splitter.end());
}

function textsOf(lines: ReturnType<ReturnType<typeof createLineSplitter>["push"]>): string[] {
  return lines.map(({ n, bytes }) => {
    if (bytes === null) throw new UserError(`Line ${n} of the results is longer than ${LINE_BYTES_MAX} bytes.`);
    return bytes.toString();
  });
}

function recordOf(record: Static<typeof Done>): ResultRecord {
  const { charged_mils, refunded_mils, video_bytes, seed } = record;
  return {
    ...record,
    error_code: null,
    error_message: null,
    charged_mils: BigInt(charged_mils),
    refunded_mils: BigInt(refunded_mils),
    seed: seed === null ? null : BigInt(seed),
    video_bytes: BigInt(video_bytes),
  };
}
