/**
 * After the crashes, from the outside and from the books: every row is in one state, counters and manifest say what the
 * rows say, the store holds what they name and nothing else, and what was taken is what was delivered, to the mil.
 */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { expect } from "vitest";

import { countFrames } from "#cli/video-frames.ts";
import { blobKeys } from "#contract/jobs.ts";
import { verifyLedger } from "#ledger/verify.ts";
import type { Database } from "#platform/database.ts";
import { findFfmpeg } from "#workers/inference/video/ffmpeg-path.ts";

import type { PlannedRow } from "./dataset-manifest.ts";
import type { PatientClient } from "./patient-client.ts";

const MILS_PER_FRAME = 5;
/** Decoding takes a while: the first and some of the rest. */
const DECODED = 12;
const PAGE = 100;

export interface RowAnswer {
  readonly n: number;
  readonly id: string | null;
  readonly state: string;
  readonly error: { readonly code: string; readonly message: string } | null;
  readonly try: number;
  readonly rollout_id: string | null;
  readonly frames: number | null;
  readonly charged_mils: number;
  readonly refunded_mils: number;
  readonly video_url: string | null;
  readonly video_bytes: number | null;
}

export interface DatasetAnswer {
  readonly id: string;
  readonly state: string;
  readonly pause_reason: string | null;
  readonly rows: Readonly<Record<string, number>>;
  readonly frames: { readonly delivered: number };
  readonly cost: Readonly<Record<string, number>>;
}

interface Books {
  readonly db: Database;
  readonly client: PatientClient;
  /** Root of the blob store. */
  readonly blobs: string;
  readonly customerId: string;
  readonly granted: bigint;
}

export async function readDataset(client: PatientClient, id: string): Promise<DatasetAnswer> {
  const answer = await client.get(`/v1/datasets/${id}`);
  expect({ status: answer.status, body: answer.status === 200 ? "" : answer.body.toString() }).toMatchObject({
    status: 200,
  });
  return answer.json() as DatasetAnswer;
}

/** Page by page, as a customer does. */
export async function readRows(client: PatientClient, id: string): Promise<RowAnswer[]> {
  const rows: RowAnswer[] = [];
  for (;;) {
    const page = await client.get(`/v1/datasets/${id}/rows?limit=${PAGE}&after=${rows.at(-1)?.n ?? 0}`);
    expect(page.status).toBe(200);
    const { data, has_more } = page.json() as { data: RowAnswer[]; has_more: boolean };
    rows.push(...data);
    if (!has_more) return rows;
  }
}

/** Every row is there once, ended, as its fate has it. `failedMax`: good rows that our own kills may have failed. */
export function checkFates(rows: readonly RowAnswer[], plan: readonly PlannedRow[], failedMax: number): void {
  expect(rows.map(({ n }) => n)).toEqual(plan.map(({ n }) => n));
  const unexpected: unknown[] = [];
  let failed = 0;
  for (const [index, row] of rows.entries()) {
    const planned = plan[index];
    if (planned === undefined || !isAsPlanned(row, planned)) unexpected.push({ fate: planned?.fate, ...row });
    if (planned?.fate === "good" && row.state === "failed") failed += 1;
  }
  expect(unexpected).toEqual([]);
  expect(failed).toBeLessThanOrEqual(failedMax);
}

function isAsPlanned(row: RowAnswer, { fate, actions, id }: PlannedRow): boolean {
  const { state, charged_mils, refunded_mils, error } = row;
  const costsNothing = charged_mils === refunded_mils;
  if (fate === "invalid") return state === "invalid" && error !== null && charged_mils === 0 && row.rollout_id === null;
  if (row.id !== id) return false;
  if (fate === "unfetchable")
    return state === "failed" && error !== null && charged_mils === 0 && row.rollout_id === null;
  const gaveUp = state === "failed" && error?.code === "engine_failed" && costsNothing;
  if (fate === "poison") return gaveUp && charged_mils > 0;
  const frames = actions + 1;
  const delivered =
    state === "succeeded" && row.frames === frames && charged_mils - refunded_mils === frames * MILS_PER_FRAME;
  return delivered || gaveUp;
}

/** What the dataset says of itself is what its rows come to, and nothing is held or under way. */
export function checkCounters(dataset: DatasetAnswer, rows: readonly RowAnswer[]): void {
  expect(dataset.state).toBe("completed");
  const counted = { invalid: 0, pending: 0, running: 0, succeeded: 0, failed: 0, cancelled: 0, expired: 0 };
  const states: Record<string, number> = counted;
  for (const { state } of rows) states[state] = (states[state] ?? 0) + 1;
  expect(dataset.rows).toMatchObject({ total: rows.length, ...counted, pending: 0, running: 0 });
  const sum = (of: (row: RowAnswer) => number): number => rows.reduce((total, row) => total + of(row), 0);
  const charged_mils = sum((row) => row.charged_mils);
  const refunded_mils = sum((row) => row.refunded_mils);
  const spent_mils = charged_mils - refunded_mils;
  expect(dataset.cost).toMatchObject({ held_mils: 0, charged_mils, refunded_mils, spent_mils });
  expect(dataset.frames.delivered).toBe(sum((row) => (row.state === "succeeded" ? (row.frames ?? 0) : 0)));
}

interface Movement {
  readonly rollout_id: string;
  readonly debits: number;
  readonly refunds: number;
  readonly taken: bigint;
  readonly back: bigint;
  readonly row: number | null;
}

/**
 * From the entries alone: each rollout was debited once and refunded once at most, each row paid for one video or none,
 * and the balance is what was granted less five mils for each delivered frame.
 */
export async function checkMoney(books: Books, rows: readonly RowAnswer[], plan: readonly PlannedRow[]): Promise<void> {
  expect(await verifyLedger(books.db)).toEqual([]);
  const movements = await books.db.query<Movement>(
    `SELECT e.rollout_id, count(*) FILTER (WHERE e.kind = 'debit')::int AS debits,
            count(*) FILTER (WHERE e.kind = 'refund')::int AS refunds,
            coalesce(-sum(e.amount_mils) FILTER (WHERE e.kind = 'debit'), 0)::bigint AS taken,
            coalesce(sum(e.amount_mils) FILTER (WHERE e.kind = 'refund'), 0)::bigint AS back,
            r.dataset_row AS row
       FROM ledger_entries e JOIN rollouts r ON r.id = e.rollout_id
      WHERE e.customer_id = $1 GROUP BY e.rollout_id, r.dataset_row`,
    [books.customerId],
  );
  const spentOf = new Map<number, bigint>();
  for (const { row, debits, refunds, taken, back } of movements) {
    expect(debits).toBe(1);
    expect(refunds).toBeLessThanOrEqual(1);
    if (row === null) throw new Error("a rollout of no row was charged to this customer");
    spentOf.set(row, (spentOf.get(row) ?? 0n) + taken - back);
  }
  // The number of frames is the manifest's, not one of ours.
  const delivered = rows.map((row, index) => (row.state === "succeeded" ? (plan[index]?.actions ?? 0) + 1 : 0));
  const wrong = rows.filter(
    (row, index) => (spentOf.get(row.n) ?? 0n) !== BigInt(MILS_PER_FRAME * (delivered[index] ?? 0)),
  );
  expect(wrong).toEqual([]);
  const [account] = await books.db.query<{ balance: bigint }>(
    "SELECT balance_mils AS balance FROM accounts WHERE customer_id = $1 AND account = 'balance'",
    [books.customerId],
  );
  const frames = delivered.reduce((sum, count) => sum + count, 0);
  expect(books.granted - (account?.balance ?? 0n)).toBe(BigInt(MILS_PER_FRAME * frames));
}

/** The manifest, over the API and in the store, says what the rows say, and the videos are those that it names. */
export async function checkStore(books: Books, datasetId: string, rows: readonly RowAnswer[]): Promise<void> {
  const answer = await books.client.get(`/v1/datasets/${datasetId}/results?format=jsonl`);
  expect(answer.status).toBe(200);
  const stored = readFileSync(join(books.blobs, blobKeys.datasetResults(datasetId, "jsonl")), "utf8");
  for (const text of [answer.body.toString(), stored]) {
    const records = text
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    expect(records.map(briefRecord)).toEqual(rows.map(briefRow));
  }
  expect(existsSync(join(books.blobs, blobKeys.datasetResults(datasetId, "parquet")))).toBe(true);

  const succeeded = rows.filter(({ state }) => state === "succeeded");
  const folder = join(books.blobs, "datasets", datasetId, "videos");
  const wanted = succeeded.map(({ id, video_bytes }) => ({ name: `${id}.mp4`, bytes: video_bytes }));
  const there = readdirSync(folder).map((name) => ({ name, bytes: statSync(join(folder, name)).size }));
  expect(there.toSorted(byName)).toEqual(wanted.toSorted(byName));

  const ffmpeg = await findFfmpeg(undefined);
  const every = Math.max(1, Math.floor(succeeded.length / DECODED));
  for (const { id, frames } of succeeded.filter((_, index) => index % every === 0)) {
    expect({ id, frames: await countFrames(ffmpeg, join(folder, `${id}.mp4`)) }).toEqual({ id, frames });
  }
  const [first] = succeeded;
  if (first) await checkLink(first, ffmpeg);
}

const byName = (a: { name: string }, b: { name: string }): number => (a.name < b.name ? -1 : 1);

/** What a customer gets by the link decodes, too. */
async function checkLink({ video_url, frames }: RowAnswer, ffmpeg: string): Promise<void> {
  const response = await fetch(video_url ?? "");
  expect(response.status).toBe(200);
  const folder = mkdtempSync(join(tmpdir(), "dream-chaos-video-"));
  try {
    const file = join(folder, "video.mp4");
    writeFileSync(file, Buffer.from(await response.arrayBuffer()));
    expect(await countFrames(ffmpeg, file)).toBe(frames);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const briefRow = (row: RowAnswer) => ({
  n: row.n,
  status: row.state,
  error_code: row.error?.code ?? null,
  frames: row.state === "succeeded" ? row.frames : null,
  charged_mils: row.charged_mils,
  refunded_mils: row.refunded_mils,
  rollout_id: row.rollout_id,
  file_name: row.state === "succeeded" ? `videos/${row.id}.mp4` : null,
  video_bytes: row.video_bytes,
});

function briefRecord(record: Record<string, unknown>): Record<string, unknown> {
  const { n, status, error_code, frames, charged_mils, refunded_mils, rollout_id, file_name, video_bytes } = record;
  return {
    n,
    status,
    error_code,
    frames: status === "succeeded" ? frames : null,
    charged_mils,
    refunded_mils,
    rollout_id,
    file_name,
    video_bytes,
  };
}
