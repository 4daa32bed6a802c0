/**
 * Results as a Parquet file, written a row group at a time and handed on as it grows. The types are fixed, so that a
 * column of nothing but nulls, or a file without rows, reads like any other.
 */
import { ByteWriter, ParquetWriter } from "hyparquet-writer";

import type { ResultRecord } from "./results.ts";

/** Encoding this many blocks the event loop for some 20 ms. */
const ROWS_PER_GROUP = 2_000;

type SchemaElement = ConstructorParameters<typeof ParquetWriter>[0]["schema"][number];
type Column = SchemaElement & { readonly name: keyof ResultRecord };

const text = (name: keyof ResultRecord): Column => ({ name, type: "BYTE_ARRAY", converted_type: "UTF8" });
const int32 = (name: keyof ResultRecord): Column => ({ name, type: "INT32" });
const int64 = (name: keyof ResultRecord): Column => ({ name, type: "INT64" });
const double = (name: keyof ResultRecord): Column => ({ name, type: "DOUBLE" });

const COLUMNS: readonly Column[] = [
  text("row_id"),
  int32("n"),
  text("file_name"),
  text("status"),
  text("error_code"),
  text("error_message"),
  int32("frames"),
  int64("charged_mils"),
  int64("refunded_mils"),
  double("engine_wall_ms"),
  text("request_id"),
  text("rollout_id"),
  { ...int64("seed"), converted_type: "UINT_64" },
  int32("num_steps"),
  double("guidance"),
  text("prompt"),
  int64("video_bytes"),
  text("metadata"),
];
const LINK = text("video_url");

/** `withLinks`: whether the records have a `video_url`. */
export async function* resultsParquet(
  pages: AsyncIterable<readonly ResultRecord[]>,
  { withLinks }: { readonly withLinks: boolean },
): AsyncGenerator<Buffer> {
  const columns = (withLinks ? [...COLUMNS, LINK] : COLUMNS).map((column) => ({
    ...column,
    repetition_type: "OPTIONAL" as const,
  }));
  const bytes = new ByteWriter();
  const file = new ParquetWriter({
    writer: bytes,
    schema: [{ name: "root", num_children: columns.length }, ...columns],
    createdBy: "dream-engine",
  });
  // Offsets count from the beginning of the file, whatever of it has been handed on.
  const written = (): Buffer => {
    const chunk = Buffer.from(bytes.getBytes());
    bytes.index = 0;
    return chunk;
  };
  for await (const group of inGroups(pages)) {
    const columnData = columns.map(({ name }) => ({ name, data: group.map((record) => record[name] ?? null) }));
    await file.write({ columnData, rowGroupSize: group.length });
    yield written();
  }
  await file.finish();
  yield written();
}

async function* inGroups(pages: AsyncIterable<readonly ResultRecord[]>): AsyncGenerator<readonly ResultRecord[]> {
  let group: ResultRecord[] = [];
  for await (const page of pages) {
    group.push(...page);
    if (group.length < ROWS_PER_GROUP) continue;
    yield group;
    group = [];
  }
  if (group.length > 0) yield group;
}
