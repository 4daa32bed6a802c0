/** A rollout as JSON, for `POST /v1/rollouts` and `GET /v1/rollouts/{id}`. */
import { type Static, type TSchema, Type } from "typebox";

import { VIDEO_URL_LIFETIME_MS } from "#contract/limits.ts";
import type { Manifest } from "#contract/manifest.ts";
import { mils, usdNumber } from "#contract/mils.ts";
import { isTerminal } from "#rollouts/lifecycle.ts";
import type { Rollout } from "#rollouts/rollout.ts";

import { videoUrl } from "../signed-url.ts";
import { engineWallMs } from "./deliver.ts";

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
  readonly secret: Buffer;
  /** What video links begin with. */
  readonly publicUrl: string;
  readonly nowMs: number;
  /** Whether a worker has it in hand. */
  readonly running: boolean;
  readonly queuePosition: number | null;
}

export function envelopeOf(rollout: Rollout, context: EnvelopeContext): RolloutEnvelope {
  const { shapes, secret, publicUrl, nowMs } = context;
  const expires = Math.floor((nowMs + VIDEO_URL_LIFETIME_MS) / 1000);
  const videoUrls = (rollout.result?.video_keys ?? []).map((_key, candidate) =>
    videoUrl(secret, publicUrl, { rollout_id: rollout.id, candidate, expires }),
  );
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
    video_url: videoUrls[0] ?? null,
    video_urls: videoUrls,
    video_url_expires_at: videoUrls.length > 0 ? expires : null,
    seed: BigInt(rollout.params.seed),
    error: rollout.error_code ? { code: rollout.error_code, message: rollout.error_message ?? "" } : null,
  };
}
