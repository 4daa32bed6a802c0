/** A rollout as its customer sees it, in JSON: what the routes answer and what a webhook brings. */
import { type Static, type TSchema, Type } from "typebox";

import type { Manifest } from "#contract/manifest.ts";
import { mils, usdNumber } from "#contract/mils.ts";

import { isTerminal } from "./lifecycle.ts";
import type { Rollout } from "./rollout.ts";
import type { Videos } from "./video-links.ts";

const Nullable = <T extends TSchema>(schema: T) => Type.Union([schema, Type.Null()]);

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
    queue_position: Nullable(Type.Integer({ description: "1 is next; null once it is dispatched." })),
    frames: Type.Integer({ description: "Frames of one video: actions + 1." }),
    resolution: Nullable(Type.Array(Type.Integer(), { description: "[height, width]", minItems: 2, maxItems: 2 })),
    batch_size: Type.Integer(),
    engine_wall_ms: Nullable(Type.Number()),
    cost_usd: Type.Number(),
    cost_mils: Type.Integer({ description: "What stays charged: 1 mil = $0.0001." }),
    video_url: Nullable(Type.String({ description: "Signed; works without a key until it expires." })),
    video_urls: Type.Array(Type.String(), { description: "One per candidate, in submission order." }),
    video_url_expires_at: Nullable(Type.Integer({ description: "Epoch seconds." })),
    seed: Type.Unsafe<bigint>(Type.Integer({ description: "Modulo 2^64." })), // a number would round it
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
}

export function envelopeOf(rollout: Rollout, context: EnvelopeContext): RolloutEnvelope {
  const { shapes, videos } = context;
  const cost = mils(rollout.charge_mils - rollout.refunded_mils);
  return {
    id: rollout.id,
    object: "rollout",
    model: rollout.model,
    created: Math.floor(rollout.created_at.getTime() / 1000),
    status: isTerminal(rollout.status) ? rollout.status : context.running ? "running" : "queued",
    queue_position: context.queuePosition,
    frames: rollout.actions_per_candidate + 1,
    resolution: shapes && [shapes.height, shapes.width],
    batch_size: rollout.k,
    engine_wall_ms: rollout.result ? engineWallMs(rollout) : null,
    cost_usd: usdNumber(cost),
    cost_mils: Number(cost),
    video_url: videos?.urls[0] ?? null,
    video_urls: [...(videos?.urls ?? [])],
    video_url_expires_at: videos?.expires ?? null,
    seed: BigInt(rollout.params.seed),
    error: rollout.error_code ? { code: rollout.error_code, message: rollout.error_message ?? "" } : null,
  };
}

/** Milliseconds with one decimal; 0 before there is a result. */
export function engineWallMs({ result }: Rollout): number {
  return Math.round((result?.timings.engine_wall_ms ?? 0) * 10) / 10;
}
