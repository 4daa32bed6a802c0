/**
 * What crosses the queue: ids, references, parameters and the pre-debited mils. Never payloads, never keys.
 * Both ends parse with these schemas.
 */
import { Type, type Static } from "typebox";

import { Lane, SamplingParams } from "./rollout.ts";

const MilsText = Type.String({ pattern: "^[0-9]{1,18}$" });
const BlobKey = Type.String({ minLength: 1, maxLength: 200 });
const RolloutIdText = Type.String({ pattern: "^rollout_[0-9a-f]{32}$" });

/** On queue `predict.<model>` or, in the bulk lane, `predict.<model>.bulk`; job id `<rollout_id>-<attempt>`. One job is one rollout row, also for K candidates. */
export const PredictJob = Type.Object(
  {
    rollout_id: RolloutIdText,
    attempt: Type.Integer({ minimum: 1 }),
    model: Type.String(),
    lane: Lane,
    /** Blob key of the start frame: PNG, RGB, at the model's resolution. */
    frame_key: BlobKey,
    /** Blob key of the actions: little-endian float32, `[k, actions_per_candidate, action_dim]`, row-major. */
    actions_key: BlobKey,
    k: Type.Integer({ minimum: 1, maximum: 32 }),
    actions_per_candidate: Type.Integer({ minimum: 1, maximum: 240 }),
    params: SamplingParams,
    /** The video is compared with one of the base spec, too; absent: it is not. Of one candidate, in the bulk lane. */
    scored: Type.Optional(Type.Literal(true)),
    debited_mils: MilsText,
    /** Epoch ms after which nobody waits any more; the worker gives up by itself. */
    deadline_ms: Type.Integer({ minimum: 0 }),
    /** Epoch ms after which it is not begun any more; absent where somebody waits for it. */
    start_by_ms: Type.Optional(Type.Integer({ minimum: 0 })),
    /** Set when an engine fault has hit this job once: it runs in a batch of its own, then is given up. */
    alone: Type.Boolean(),
    /** It has begun to run alone: when its worker dies now, it was this job. */
    begun_alone: Type.Optional(Type.Boolean()),
  },
  { additionalProperties: false },
);
export type PredictJob = Static<typeof PredictJob>;

/** Milliseconds of one attempt, by what they were spent on. */
export const Timings = Type.Object(
  {
    /** First forward to last decoded frame. */
    engine_wall_ms: Type.Number({ minimum: 0 }),
    fetch_ms: Type.Number({ minimum: 0 }),
    /** Waiting for ffmpeg after the engine was done, and writing the files. */
    encode_ms: Type.Number({ minimum: 0 }),
    /** Job picked up to outcome ready, without its wait for a place in the engine. */
    total_ms: Type.Number({ minimum: 0 }),
  },
  { additionalProperties: false },
);
export type Timings = Static<typeof Timings>;

/** How close a rollout's video is to that of the base spec (docs/quality.md): means over the generated frames. */
export const RolloutScore = Type.Object(
  {
    /** At most 100, which identical videos have. */
    psnr_db: Type.Number({ minimum: 0, maximum: 100 }),
    ssim: Type.Number({ minimum: -1, maximum: 1 }),
    /** 0 for identical videos. */
    lpips: Type.Number({ minimum: 0 }),
  },
  { additionalProperties: false },
);
export type RolloutScore = Static<typeof RolloutScore>;

/** `result.json` beside the videos, and the body of a succeeded outcome. */
export const RolloutResult = Type.Object(
  {
    /** One per candidate, in submission order. */
    video_keys: Type.Array(BlobKey, { minItems: 1, maxItems: 32 }),
    /** Frames in all videos together: k · (actions_per_candidate + 1). */
    frames: Type.Integer({ minimum: 1 }),
    timings: Timings,
    /** Of a scored rollout. */
    score: Type.Optional(RolloutScore),
  },
  { additionalProperties: false },
);
export type RolloutResult = Static<typeof RolloutResult>;

export const FailureCode = Type.Union([
  Type.Literal("engine_failed"),
  Type.Literal("engine_timeout"),
  Type.Literal("bad_input"),
  Type.Literal("lost"),
  Type.Literal("internal"),
]);
export type FailureCode = Static<typeof FailureCode>;

/** How an attempt (or a rollout that never ran) ended. */
export const Outcome = Type.Union([
  Type.Object({ kind: Type.Literal("succeeded"), result: RolloutResult }, { additionalProperties: false }),
  Type.Object(
    {
      kind: Type.Literal("failed"),
      code: FailureCode,
      message: Type.String({ maxLength: 500 }),
      /** Frames that reached the customer before the failure (streaming); they stay charged. */
      frames_delivered: Type.Integer({ minimum: 0 }),
    },
    { additionalProperties: false },
  ),
  Type.Object(
    { kind: Type.Literal("cancelled"), frames_delivered: Type.Integer({ minimum: 0 }) },
    { additionalProperties: false },
  ),
  Type.Object({ kind: Type.Literal("expired") }, { additionalProperties: false }),
]);
export type Outcome = Static<typeof Outcome>;

/** On queue `settlement`, under the predict job's id. */
export const SettlementJob = Type.Object(
  { rollout_id: RolloutIdText, attempt: Type.Integer({ minimum: 1 }), outcome: Outcome },
  { additionalProperties: false },
);
export type SettlementJob = Static<typeof SettlementJob>;

/**
 * Blob keys of a rollout. A worker that freezes and comes back may still run an attempt that runs elsewhere by now, so
 * the videos of every run have keys of their own and are never overwritten. A `result.json` names those of one run;
 * the last one written stays, the settled row says which run counts.
 */
export const blobKeys = {
  frame: (rolloutId: string) => `rollouts/${rolloutId}/start_frame.png`,
  actions: (rolloutId: string) => `rollouts/${rolloutId}/actions.f32`,
  /** `runId` is random: one execution of the attempt. */
  video: (rolloutId: string, attempt: number, runId: string, candidate: number) =>
    `rollouts/${rolloutId}/${attempt}/${runId}/rollout_${String(candidate).padStart(3, "0")}.mp4`,
  result: (rolloutId: string, attempt: number) => `rollouts/${rolloutId}/${attempt}/result.json`,
  upload: (uploadId: string) => `uploads/${uploadId}`,
  /** Inputs that came with the dataset itself; those of a row's rollout are the rollout's. */
  datasetInput: (datasetId: string, n: number, part: "frame" | "actions") => `dataset_inputs/${datasetId}/${n}/${part}`,
  /**
   * What its owner loads: these keys do not change, and nothing else is in this folder. Hugging Face's loader takes it as
   * it is: one file of the name `metadata`, whose records all have their video.
   */
  datasetVideo: (datasetId: string, rowId: string) => `datasets/${datasetId}/videos/${rowId}.mp4`,
  datasetMetadata: (datasetId: string) => `datasets/${datasetId}/metadata.parquet`,
  /** A record for every row, those without a video, too. */
  datasetResults: (datasetId: string, format: "jsonl" | "parquet") => `datasets/${datasetId}/results.${format}`,
} as const;

/** Everything of a dataset is below one of these. */
export const datasetPrefixes = (datasetId: string): readonly string[] => [
  `datasets/${datasetId}/`,
  `dataset_inputs/${datasetId}/`,
];
