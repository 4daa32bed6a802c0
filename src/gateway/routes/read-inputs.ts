/** From a form to what the predictor takes. The form's bytes are let go of here: a rollout may be waited for long. */
import type { FastifyRequest } from "fastify";

import { ApiError } from "#contract/errors.ts";
import { ACTIONS_PER_ROLLOUT_MAX, CANDIDATES_MAX } from "#contract/limits.ts";
import type { Manifest } from "#contract/manifest.ts";
import { checkOutboundUrl } from "#platform/outbound.ts";

import { withForm } from "../input/multipart.ts";
import { type Actions, parseActions } from "#inputs/npy.ts";
import { assertScorable, parseParams, samplingParams, scoreOfForm } from "#inputs/params.ts";
import { answerEndOf } from "../plugins/answer-end.ts";
import { identityOf } from "../plugins/keys.ts";
import { requestIdOf } from "../plugins/request-id.ts";
import type { PredictCall } from "../predict/submit.ts";
import type { RouteParts } from "../route-parts.ts";
import { idempotencyKeyOf } from "./forms.ts";

export async function readCall(
  request: FastifyRequest,
  route: PredictCall["route"],
  parts: RouteParts,
): Promise<PredictCall> {
  const idempotency_key = idempotencyKeyOf(request);
  const inputs = await (route === "rollouts"
    ? readRolloutForm(request, parts)
    : readPredictForm(request, route, parts));
  return {
    ...inputs,
    route,
    idempotency_key,
    identity: identityOf(request),
    request_id: requestIdOf(request),
    answerEnd: answerEndOf(request),
  };
}

type Inputs = Pick<PredictCall, "model" | "params" | "scored" | "candidates" | "frame" | "mode" | "webhook_url">;

const PREDICT_TEXTS = ["seed", "num_steps", "guidance", "prompt", "score", "model"] as const;

function readPredictForm(
  request: FastifyRequest,
  route: "predict" | "batch",
  { models, baseModel, budget, normaliseFrame }: RouteParts,
): Promise<Inputs> {
  const repeated = route === "batch" ? (["actions"] as const) : [];
  const once = route === "batch" ? (["frame"] as const) : (["frame", "actions"] as const);
  const shape = { once, repeated, texts: PREDICT_TEXTS } as const;
  return withForm(request, shape, budget, async (form) => {
    const model = models.ofRequest(form.text("model"), baseModel(request));
    const params = samplingParams(
      {
        seed: form.text("seed"),
        num_steps: form.text("num_steps"),
        guidance: form.text("guidance"),
        prompt: form.text("prompt"),
      },
      model.manifest,
    );
    const scored = scoreOfForm(form.text("score"));
    if (scored && route === "batch") {
      throw new ApiError("not_supported", "score: a batch is not scored; send its candidates one by one to be scored");
    }
    if (scored) assertScorable(model.manifest);
    const candidates = parseCandidates(form.files("actions"), model.manifest);
    const frame = await normaliseFrame(form.file("frame"), model.manifest.shapes, "frame");
    return { model, params, scored, candidates, frame, mode: { kind: "sync" }, webhook_url: null };
  });
}

function readRolloutForm(
  request: FastifyRequest,
  { config, models, baseModel, budget, normaliseFrame }: RouteParts,
): Promise<Inputs> {
  const shape = { once: ["start_frame", "actions"], repeated: [], texts: ["params"] } as const;
  return withForm(request, shape, budget, async (form) => {
    const { model: named, mode, scored, webhook_url, ...requested } = parseParams(form.text("params"));
    if (webhook_url !== null) {
      checkOutboundUrl(webhook_url, "params.webhook_url", config.OUTBOUND_PRIVATE === "on");
    }
    const model = models.ofRequest(named, baseModel(request));
    const params = samplingParams(requested, model.manifest);
    if (scored) assertScorable(model.manifest);
    const candidates = parseCandidates(form.files("actions"), model.manifest);
    const frame = await normaliseFrame(form.file("start_frame"), model.manifest.shapes, "start_frame");
    return { model, params, scored, candidates, frame, mode, webhook_url };
  });
}

/** Every candidate, checked against the model; all of them have to be of one length. */
function parseCandidates(files: readonly Buffer[], manifest: Manifest): [Actions, ...Actions[]] {
  if (files.length > CANDIDATES_MAX) {
    throw new ApiError("invalid_input", `actions: expected at most ${CANDIDATES_MAX} parts, got ${files.length}`);
  }
  const shape = { ...manifest.shapes, actions_max: ACTIONS_PER_ROLLOUT_MAX };
  const name = (index: number): string => (files.length === 1 ? "actions" : `actions ${index}`);
  const [first, ...others] = files.map((file, index) => parseActions(file, shape, name(index)));
  if (!first) throw new ApiError("invalid_input", "actions: expected at least one part");
  const odd = others.findIndex(({ count }) => count !== first.count);
  if (odd >= 0) {
    throw new ApiError(
      "invalid_input",
      `${name(odd + 1)}: expected ${first.count} actions as in the first part, got ${others[odd]?.count}`,
    );
  }
  return [first, ...others];
}
