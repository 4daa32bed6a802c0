/** A dataset and its rows as their customer sees them, in JSON: what the routes answer and what a webhook brings. */
import { type Static, Type } from "typebox";

import { DATASET_STATES, PAUSE_REASONS, ROW_STATES } from "#contract/datasets.ts";
import { epochS } from "#contract/epoch.ts";
import { mils, usdNumber } from "#contract/mils.ts";
import { Nullable } from "#contract/nullable.ts";

import type { Dataset } from "./dataset.ts";
import { paceOf } from "./pace.ts";
import type { DatasetRow } from "./row.ts";

const oneOf = <const T extends string>(values: readonly T[]) =>
  Type.Unsafe<T>(Type.Union(values.map((value) => Type.Literal(value)))); // a union of a list's members has no type of its own
const Time = Nullable(Type.Integer({ description: "Epoch seconds." }));
const Metadata = Type.Record(Type.String(), Type.Unknown());
const MilsNumber = Type.Integer({ description: "1 mil = $0.0001." });

export const RowProblem = Type.Object({
  line: Type.Integer({ description: "Its line in the manifest, or its place among the archive's rows; from 1." }),
  id: Nullable(Type.String()),
  code: Type.String({ description: "Stable, for programs." }),
  message: Type.String(),
});
export type RowProblem = Static<typeof RowProblem>;

export const DatasetEnvelope = Type.Object(
  {
    id: Type.String({ examples: ["dataset_0123456789abcdef0123456789abcdef"] }),
    object: Type.Literal("dataset"),
    name: Nullable(Type.String()),
    model: Type.String(),
    state: oneOf(DATASET_STATES),
    pause_reason: Nullable(oneOf(PAUSE_REASONS)),
    message: Nullable(
      Type.String({ description: "Why it was rejected or ended by itself, or what a pause waits for." }),
    ),
    created: Type.Integer({ description: "Epoch seconds." }),
    received: Time,
    started: Time,
    finished: Time,
    expires_at: Nullable(
      Type.Integer({
        description: "Epoch seconds: when its inputs, videos and results are deleted; null before the end.",
      }),
    ),
    idle_until: Nullable(
      Type.Integer({
        description:
          "Epoch seconds: when it is cancelled unless you start or resume it; null unless it is ready or paused.",
      }),
    ),
    on_invalid: Type.Union([Type.Literal("skip"), Type.Literal("reject")]),
    metadata: Metadata,
    webhook_url: Nullable(Type.String()),
    rows: Type.Object({
      total: Type.Integer(),
      invalid: Type.Integer({ description: "Refused when they came in; never charged." }),
      pending: Type.Integer(),
      running: Type.Integer(),
      succeeded: Type.Integer(),
      failed: Type.Integer(),
      cancelled: Type.Integer(),
      expired: Type.Integer(),
    }),
    frames: Type.Object({
      expected: Type.Integer({ description: "Of all valid rows; one that is not measured yet counts as 49." }),
      delivered: Type.Integer(),
      rows_unmeasured: Type.Integer({ description: "Rows whose actions nobody has looked at yet." }),
    }),
    cost: Type.Object({
      price_mils_per_frame: Type.Integer(),
      estimated_mils: Type.Integer({ description: "frames.expected at today's price: all valid rows, once." }),
      budget_mils: Nullable(Type.Integer()),
      held_mils: Type.Integer({ description: "Charged for rows that run now." }),
      charged_mils: Type.Integer({ description: "For rows that ended, all tries together." }),
      refunded_mils: Type.Integer(),
      spent_mils: Type.Integer({ description: "charged_mils − refunded_mils." }),
      spent_usd: Type.Number(),
    }),
    progress: Type.Object({
      done: Type.Integer({ description: "Valid rows that ended, in whatever way." }),
      of: Type.Integer({ description: "Valid rows." }),
      fraction: Type.Number({ minimum: 0, maximum: 1 }),
      rows_per_min: Nullable(Type.Number()),
      eta_s: Nullable(Type.Number()),
    }),
    results: Nullable(Type.Object({ jsonl: Type.String(), parquet: Type.String() })),
    problems: Type.Array(RowProblem, { description: "The first bad rows; GET …/rows?state=invalid has all." }),
  },
  { description: "A dataset" },
);
export type DatasetEnvelope = Static<typeof DatasetEnvelope>;

/** From `datasetContext` (find.ts). */
export interface DatasetContext {
  /** Of its customer, now. */
  readonly priceMilsPerFrame: number;
  readonly problems: readonly RowProblem[];
  /** How long files are kept after the end (RETENTION_DAYS). */
  readonly retentionMs: number;
  /** How long it may wait for its owner (DATASET_IDLE_DAYS). */
  readonly idleMs: number;
  /** What its links begin with, without a model. */
  readonly publicUrl: string;
  readonly nowMs: number;
}

/** Actions of a row that nobody has measured, for the estimate: what most models of robots run at once. */
export const UNMEASURED_ACTIONS = 48;

export function datasetEnvelope(dataset: Dataset, context: DatasetContext): DatasetEnvelope {
  const { rows_total, rows_invalid, rows_succeeded, rows_failed, rows_cancelled, rows_expired } = dataset;
  const frames = dataset.frames_expected + BigInt(dataset.rows_unmeasured * (UNMEASURED_ACTIONS + 1));
  const spent = mils(dataset.charged_mils - dataset.refunded_mils);
  const done = rows_succeeded + rows_failed + rows_cancelled + rows_expired;
  const of = rows_total - rows_invalid;
  const ended = dataset.state === "completed" || dataset.state === "cancelled";
  const results = `${context.publicUrl}/v1/datasets/${dataset.id}/results`;
  return {
    id: dataset.id,
    object: "dataset",
    name: dataset.name,
    model: dataset.model,
    state: dataset.state,
    pause_reason: dataset.pause_reason,
    message: dataset.message,
    created: epochS(dataset.created_at),
    received: epochS(dataset.received_at),
    started: epochS(dataset.started_at),
    finished: epochS(dataset.finished_at),
    expires_at: epochS(dataset.finished_at, context.retentionMs),
    idle_until: epochS(dataset.resting_since, context.idleMs),
    on_invalid: dataset.on_invalid,
    metadata: { ...dataset.metadata },
    webhook_url: dataset.webhook_url,
    rows: {
      total: rows_total,
      invalid: rows_invalid,
      pending: dataset.rows_pending,
      running: dataset.rows_running,
      succeeded: rows_succeeded,
      failed: rows_failed,
      cancelled: rows_cancelled,
      expired: rows_expired,
    },
    frames: {
      expected: Number(frames),
      delivered: Number(dataset.frames_delivered),
      rows_unmeasured: dataset.rows_unmeasured,
    },
    cost: {
      price_mils_per_frame: context.priceMilsPerFrame,
      estimated_mils: Number(frames * BigInt(context.priceMilsPerFrame)),
      budget_mils: dataset.budget_mils === null ? null : Number(dataset.budget_mils),
      held_mils: Number(dataset.held_mils),
      charged_mils: Number(dataset.charged_mils),
      refunded_mils: Number(dataset.refunded_mils),
      spent_mils: Number(spent),
      spent_usd: usdNumber(spent),
    },
    progress: { done, of, fraction: of === 0 ? 0 : done / of, ...paceOf(dataset, context.nowMs) },
    results:
      ended && !dataset.files_deleted_at
        ? { jsonl: `${results}?format=jsonl`, parquet: `${results}?format=parquet` }
        : null,
    problems: [...context.problems],
  };
}

export const RowEnvelope = Type.Object(
  {
    n: Type.Integer({ description: "Its line in the manifest, or its place among the archive's rows; from 1." }),
    id: Nullable(Type.String()),
    state: oneOf(ROW_STATES),
    error: Nullable(Type.Object({ code: Type.String(), message: Type.String() })),
    try: Type.Integer({ description: "How often it was run." }),
    rollout_id: Nullable(Type.String()),
    request_id: Nullable(Type.String({ description: "Of its latest run: the reference of its debit and refund." })),
    frames: Nullable(Type.Integer()),
    charged_mils: MilsNumber,
    refunded_mils: MilsNumber,
    engine_wall_ms: Nullable(Type.Number()),
    video_url: Nullable(Type.String({ description: "Signed; works without a key until it expires." })),
    video_url_expires_at: Time,
    video_bytes: Nullable(Type.Integer()),
    num_actions: Nullable(Type.Integer({ description: "Null while nobody has looked at its actions." })),
    // A number would round it; as a union, which is told apart by the schema, a bigint is no integer.
    seed: Type.Unsafe<bigint | null>(Type.Integer({ nullable: true, description: "Modulo 2^64." })),
    num_steps: Nullable(Type.Integer()),
    guidance: Nullable(Type.Number()),
    prompt: Nullable(Type.String()),
    metadata: Metadata,
    finished: Time,
  },
  { description: "A row of a dataset" },
);
export type RowEnvelope = Static<typeof RowEnvelope>;

/** `video`: its link, null where there is none (row-video-links.ts). */
export function rowEnvelope(
  row: DatasetRow,
  video: { readonly url: string; readonly expires: number } | null,
): RowEnvelope {
  const { params } = row;
  return {
    n: row.n,
    id: row.row_id,
    state: row.state,
    error: row.error_code === null ? null : { code: row.error_code, message: row.error_message ?? "" },
    try: row.try,
    rollout_id: row.rollout_id,
    request_id: row.request_id,
    frames: row.frames,
    charged_mils: Number(row.charged_mils),
    refunded_mils: Number(row.refunded_mils),
    engine_wall_ms: row.engine_wall_ms === null ? null : Math.round(row.engine_wall_ms * 10) / 10,
    video_url: video?.url ?? null,
    video_url_expires_at: video?.expires ?? null,
    video_bytes: row.video_bytes === null ? null : Number(row.video_bytes),
    num_actions: row.num_actions,
    seed: params && BigInt(params.seed),
    num_steps: params && params.num_steps,
    guidance: params && params.guidance,
    prompt: params && params.prompt,
    metadata: { ...row.metadata },
    finished: epochS(row.finished_at),
  };
}
