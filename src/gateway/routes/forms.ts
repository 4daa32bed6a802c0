/** The multipart forms of the predict routes: as documentation (read-inputs.ts reads them). */
import type { FastifyRequest } from "fastify";
import { Type } from "typebox";

import { ApiError } from "#contract/errors.ts";
import {
  ACTIONS_PER_ROLLOUT_MAX,
  ASYNC_EXPIRES_S_DEFAULT,
  ASYNC_EXPIRES_S_MAX,
  CANDIDATES_MAX,
  GUIDANCE_MAX,
  GUIDANCE_MIN,
  IDEMPOTENCY_KEY_CHARS_MAX,
  NUM_STEPS_MAX,
  NUM_STEPS_MIN,
  PROMPT_BYTES_MAX,
} from "#contract/limits.ts";

const Frame = Type.String({
  format: "binary",
  description: "PNG or JPEG of any size up to 64 Mpx; resized to the model's resolution (Lanczos).",
});
const ActionsFile = Type.String({
  format: "binary",
  description:
    "A .npy array (T, action_dim) of numbers; T is a positive multiple of the model's chunk_size, " +
    `at most ${ACTIONS_PER_ROLLOUT_MAX}. T actions give T + 1 frames.`,
});
const sampling = {
  seed: Type.Optional(Type.Integer({ default: 0, description: "Any signed or unsigned 64-bit integer." })),
  num_steps: Type.Optional(Type.Integer({ minimum: NUM_STEPS_MIN, maximum: NUM_STEPS_MAX })),
  guidance: Type.Optional(Type.Number({ minimum: GUIDANCE_MIN, maximum: GUIDANCE_MAX })),
  prompt: Type.Optional(Type.String({ description: `At most ${PROMPT_BYTES_MAX} bytes of UTF-8.` })),
  model: Type.Optional(Type.String({ description: "A model's slug; unset: the model of this base URL." })),
};

export const PredictForm = Type.Object({
  frame: Frame,
  actions: ActionsFile,
  ...sampling,
  score: Type.Optional(
    Type.Boolean({
      default: false,
      description:
        "Also compare the video with one of the base spec, every optimisation off (X-DreamEngine-PSNR-dB, -SSIM, -LPIPS): " +
        "takes longer, behind what others wait for, and costs the same.",
    }),
  ),
});
export const BatchForm = Type.Object({
  frame: Frame,
  actions: Type.Array(ActionsFile, {
    minItems: 1,
    maxItems: CANDIDATES_MAX,
    description: "One part per candidate, all of the same length, in order.",
  }),
  ...sampling,
});
export const RolloutForm = Type.Object({
  start_frame: Frame,
  actions: ActionsFile,
  params: Type.Optional(
    Type.String({
      description:
        "JSON text: {model, seed, num_steps, guidance, prompt, score, mode, expires_in_s, webhook_url}. score true also " +
        "compares the video with one of the base spec, every optimisation off (psnr_db, ssim and lpips of the answer): " +
        "takes longer, behind what others wait for, and costs the same. " +
        'mode "async" answers 202 at once; expires_in_s is then how long the rollout may wait for its start ' +
        `(1 to ${ASYNC_EXPIRES_S_MAX} seconds, else ${ASYNC_EXPIRES_S_DEFAULT}). webhook_url is told of its end.`,
      examples: ['{"seed": 7}', '{"mode": "async", "expires_in_s": 3600}'],
    }),
  ),
});

export const IdempotencyHeaders = Type.Object({
  "idempotency-key": Type.Optional(
    Type.String({
      description: "The same key and payload give the same rollout, charged once; kept for 24 hours.",
      maxLength: IDEMPOTENCY_KEY_CHARS_MAX,
    }),
  ),
});

export function idempotencyKeyOf(request: FastifyRequest): string | null {
  const key = request.headers["idempotency-key"];
  if (key === undefined) return null;
  if (typeof key !== "string" || !/^[\x21-\x7e]+$/.test(key) || key.length > IDEMPOTENCY_KEY_CHARS_MAX) {
    throw new ApiError(
      "invalid_input",
      `Idempotency-Key: expected 1 to ${IDEMPOTENCY_KEY_CHARS_MAX} visible ASCII characters, got ${key.length} characters`,
    );
  }
  return key;
}
