/** A rollout as its customer sees it, in JSON: what the routes answer and what a webhook brings. */
import { type Static, Type } from "typebox";

import { epochS } from "#contract/epoch.ts";
import { QUEUE_POSITION_MAX } from "#contract/limits.ts";
import type { Manifest } from "#contract/manifest.ts";
import { mils, usdNumber } from "#contract/mils.ts";
import { Nullable } from "#contract/nullable.ts";

import { isTerminal } from "./lifecycle.ts";
import type { Rollout } from "./rollout.ts";
import type { Videos } from "./video-links.ts";

export const RolloutEnvelope = Type.Object(
  {
    id: Type.String({ examples: ["rollout_0123456789abcdef0123456789abcdef"] }),
    object: Type.Literal("rollout"),
    model: Type.String(),
    created: Type.Integer({ description: "Epoch seconds." }),
    status: Type.Union([
      Type.Literal("queued"),
      Type.Literal("running"),
      Type.Literal("succeeded"),
      Type.Literal("failed"),
      Type.Literal("cancelled"),
      Type.Literal("expired"),
    ]),
    mode: Type.Union([Type.Literal("sync"), Type.Literal("async"), Type.Literal("dataset")], {
      description: "sync: somebody waits on the connection that it came by; dataset: a row of one.",
    }),
    request_id: Type.String({ description: "Of the request that was charged for it, as in your statement." }),
    dataset: Nullable(
      Type.Object({
        id: Type.String(),
        row: Type.Integer({ description: "Its line or place in the dataset, from 1." }),
      }),
    ),
    queue_position: Nullable(
      Type.Integer({
        description: `1 is next; ${QUEUE_POSITION_MAX} means that or more, or that as many customers wait; null once it is dispatched, and in lists.`,
      }),
    ),
    expected_start_s: Nullable(
      Type.Integer({
        description:
          "In so many seconds a worker may begin it, from its place and what the workers do; null where nobody can tell, " +
          "and where queue_position is.",
      }),
    ),
    frames: Type.Integer({ description: "Frames of one video: actions + 1." }),
    frames_done: Nullable(
      Type.Integer({ description: "Of frames_total, as its worker last said; null while nobody has said anything." }),
    ),
    frames_total: Type.Integer({ description: "Frames of all its videos together: batch_size times frames." }),
    started: Nullable(
      Type.Integer({ description: "When it was handed to the workers, shown once one has it; epoch seconds." }),
    ),
    finished: Nullable(Type.Integer({ description: "When it ended, however it did; epoch seconds." })),
    start_by: Nullable(
      Type.Integer({
        description: "While it waits: what no worker has begun by then expires and is refunded; epoch seconds.",
      }),
    ),
    expires_at: Nullable(
      Type.Integer({ description: "When its inputs and videos are deleted; epoch seconds, null before it has ended." }),
    ),
    resolution: Nullable(Type.Array(Type.Integer(), { description: "[height, width]", minItems: 2, maxItems: 2 })),
    batch_size: Type.Integer(),
    engine_wall_ms: Nullable(Type.Number()),
    psnr_db: Nullable(
      Type.Number({
        description:
          "Of a scored rollout against the base spec, as the next two: means over its generated frames, null otherwise. " +
          "At most 100, which identical videos have.",
      }),
    ),
    ssim: Nullable(Type.Number({ description: "1 for identical videos." })),
    lpips: Nullable(Type.Number({ description: "0 for identical videos; higher is more different." })),
    charged_mils: Type.Integer({ description: "What was taken when it was accepted." }),
    refunded_mils: Type.Integer({ description: "What was given back when it ended." }),
    cost_usd: Type.Number(),
    cost_mils: Type.Integer({ description: "What stays charged: 1 mil = $0.0001." }),
    video_url: Nullable(Type.String({ description: "Signed; works without a key until it expires." })),
    video_urls: Type.Array(Type.String(), { description: "One per candidate, in submission order." }),
    video_url_expires_at: Nullable(Type.Integer({ description: "Epoch seconds." })),
    seed: Type.Unsafe<bigint>(Type.Integer({ description: "Modulo 2^64." })), // a number would round it
    webhook_url: Nullable(Type.String({ description: "Where its end is told, as it was asked for." })),
    error: Nullable(Type.Object({ code: Type.String(), message: Type.String() })),
  },
  { description: "A rollout" },
);
export type RolloutEnvelope = Static<typeof RolloutEnvelope>;

export interface EnvelopeContext {
  /** Of its model; null when the model was taken down since. */
  readonly shapes: Manifest["shapes"] | null;
  /** Links to its videos; null where there are none. */
  readonly videos: Videos | null;
  /** Whether a worker has it in hand. */
  readonly running: boolean;
  readonly queuePosition: number | null;
  /** Seconds from now; null where it is not known. */
  readonly expectedStartS: number | null;
  /** What its worker last said; null where it is not known, or where the rollout has ended. */
  readonly framesDone: number | null;
  /** How long inputs and videos are kept after its end. */
  readonly retentionMs: number;
}

export function envelopeOf(rollout: Rollout, context: EnvelopeContext): RolloutEnvelope {
  const { shapes, videos } = context;
  const cost = mils(rollout.charge_mils - rollout.refunded_mils);
  const mode = modeOf(rollout);
  return {
    id: rollout.id,
    object: "rollout",
    model: rollout.model,
    created: epochS(rollout.created_at),
    status: isTerminal(rollout.status) ? rollout.status : context.running ? "running" : "queued",
    mode,
    request_id: rollout.request_id,
    dataset: rollout.dataset_id === null ? null : { id: rollout.dataset_id, row: rollout.dataset_row ?? 0 },
    queue_position: context.queuePosition,
    expected_start_s: context.expectedStartS === null ? null : Math.ceil(context.expectedStartS),
    frames: rollout.actions_per_candidate + 1,
    frames_done: rollout.frames_delivered ?? (rollout.status === "queued" ? 0 : context.framesDone),
    frames_total: rollout.frames,
    started: hasBegun(rollout, context) ? epochS(rollout.dispatched_at) : null,
    finished: epochS(rollout.finished_at),
    start_by: isTerminal(rollout.status) || context.running ? null : epochS(rollout.start_by),
    expires_at: epochS(rollout.finished_at, context.retentionMs),
    resolution: shapes && [shapes.height, shapes.width],
    batch_size: rollout.k,
    engine_wall_ms: rollout.result ? engineWallMs(rollout) : null,
    psnr_db: rollout.result?.score?.psnr_db ?? null,
    ssim: rollout.result?.score?.ssim ?? null,
    lpips: rollout.result?.score?.lpips ?? null,
    charged_mils: Number(rollout.charge_mils),
    refunded_mils: Number(rollout.refunded_mils),
    cost_usd: usdNumber(cost),
    cost_mils: Number(cost),
    video_url: videos?.urls[0] ?? null,
    video_urls: [...(videos?.urls ?? [])],
    video_url_expires_at: videos?.expires ?? null,
    seed: BigInt(rollout.params.seed),
    webhook_url: rollout.webhook_url,
    error: rollout.error_code ? { code: rollout.error_code, message: rollout.error_message ?? "" } : null,
  };
}

/** What expired while it was still in the workers' queue ended before its deadline, which leaves time to run. */
function hasBegun({ status, finished_at, deadline_at, start_by }: Rollout, { running }: EnvelopeContext): boolean {
  if (!isTerminal(status)) return running;
  return status !== "expired" || start_by === null || finished_at === null || finished_at >= deadline_at;
}

/** How it came in: a rollout that nobody waits for on a connection is asynchronous. */
function modeOf({ dataset_id, waiter_id }: Rollout): RolloutEnvelope["mode"] {
  if (dataset_id !== null) return "dataset";
  return waiter_id === null ? "async" : "sync";
}

/** Milliseconds with one decimal; 0 before there is a result. */
export function engineWallMs({ result }: Rollout): number {
  return Math.round((result?.timings.engine_wall_ms ?? 0) * 10) / 10;
}
