/**
 * What became of every row: one record each, the bad ones too, in the order of the manifest. Read a page at a time along
 * the primary key, so that a quarter of a million rows take no more memory than a thousand.
 */
import type { RowState } from "#contract/datasets.ts";
import type { DatasetId } from "#contract/ids.ts";
import type { Sql } from "#platform/database.ts";

import { listRows } from "./find.ts";
import type { DatasetRow } from "./row.ts";

export type ResultFormat = "jsonl" | "parquet";

export interface ResultRecord {
  /** Null where a bad row had none. */
  readonly row_id: string | null;
  readonly n: number;
  /** Relative to the file of results, as `datasets` of Hugging Face looks for it; null where there is no video. */
  readonly file_name: string | null;
  readonly status: RowState;
  readonly error_code: string | null;
  readonly error_message: string | null;
  readonly frames: number | null;
  readonly charged_mils: bigint;
  readonly refunded_mils: bigint;
  readonly engine_wall_ms: number | null;
  readonly request_id: string | null;
  readonly rollout_id: string | null;
  /** Modulo 2^64. */
  readonly seed: bigint | null;
  readonly num_steps: number | null;
  readonly guidance: number | null;
  readonly prompt: string | null;
  readonly video_bytes: bigint | null;
  /** Signed, for a while; left out of what is stored. */
  readonly video_url?: string | null;
  /** JSON text: every row may have other fields. */
  readonly metadata: string;
}

export interface Selection {
  /** A link to a row's video, or null; absent where the records are to be stored. */
  readonly linkOf?: (row: DatasetRow) => string | null;
  /** Rows in this state alone. */
  readonly state?: RowState;
}

const ROWS_PER_PAGE = 1_000;

/** Pages of records, each at most ROWS_PER_PAGE long; the next one is read when it is asked for. */
export async function* resultPages(
  sql: Sql,
  id: DatasetId,
  { linkOf, state }: Selection = {},
): AsyncGenerator<readonly ResultRecord[]> {
  for (let after = 0; ;) {
    const { data, has_more } = await listRows(sql, id, { limit: ROWS_PER_PAGE, after, state: state ?? null });
    const last = data.at(-1);
    if (!last) return;
    yield data.map((row) => recordOf(row, linkOf));
    if (!has_more) return;
    after = last.n;
  }
}

function recordOf(row: DatasetRow, linkOf: Selection["linkOf"]): ResultRecord {
  const { params } = row;
  return {
    row_id: row.row_id,
    n: row.n,
    file_name: row.video_key === null ? null : `videos/${row.row_id}.mp4`,
    status: row.state,
    error_code: row.error_code,
    error_message: row.error_message,
    frames: row.frames,
    charged_mils: row.charged_mils,
    refunded_mils: row.refunded_mils,
    engine_wall_ms: row.engine_wall_ms,
    request_id: row.request_id,
    rollout_id: row.rollout_id,
    seed: params && BigInt(params.seed),
    num_steps: params && params.num_steps,
    guidance: params && params.guidance,
    prompt: params && params.prompt,
    video_bytes: row.video_bytes,
    ...(linkOf ? { video_url: linkOf(row) } : {}),
    metadata: JSON.stringify(row.metadata),
  };
}

/** A line each. Integers keep all their digits, also those that JavaScript's numbers would round. */
export async function* resultsJsonl(pages: AsyncIterable<readonly ResultRecord[]>): AsyncGenerator<Buffer> {
  for await (const page of pages) {
    yield Buffer.from(page.map((record) => `${jsonOf(record)}\n`).join(""));
  }
}

const jsonOf = (record: ResultRecord): string =>
  `{${Object.entries(record)
    .map(([name, value]) => `"${name}":${typeof value === "bigint" ? String(value) : JSON.stringify(value)}`)
    .join(",")}}`;
