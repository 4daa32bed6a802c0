/** A rollout's stored states and what it is asked to do. The transitions are in src/rollouts/lifecycle.ts. */
import { Type, type Static } from "typebox";

export const ROLLOUT_STATUSES = ["queued", "dispatched", "succeeded", "failed", "cancelled", "expired"] as const;
export type RolloutStatus = (typeof ROLLOUT_STATUSES)[number];
export type TerminalStatus = Exclude<RolloutStatus, "queued" | "dispatched">;

/** What decides the pixels, beside the frame, the actions and the bundle. */
export const SamplingParams = Type.Object(
  {
    /** 64-bit seed as decimal text, two's complement of what the client sent (JSON numbers end at 2^53). */
    seed: Type.String({ pattern: "^(0|[1-9][0-9]{0,19})$" }),
    num_steps: Type.Integer({ minimum: 1, maximum: 100 }),
    guidance: Type.Number({ minimum: 0, maximum: 20 }),
    prompt: Type.String({ maxLength: 512 }),
  },
  { additionalProperties: false },
);
export type SamplingParams = Static<typeof SamplingParams>;

/** Realtime (someone waits) goes before bulk. */
export const Lane = Type.Union([Type.Literal("realtime"), Type.Literal("bulk")]);
export type Lane = Static<typeof Lane>;

/** The HTTP surface a rollout came in by: it decides what "delivered" means (docs/architecture.md, "Delivered"). */
export type RolloutRoute = "predict" | "batch" | "rollouts" | "dataset";
