/** `POST /v1/predict` answers with the video itself, `POST /v1/predict/batch` with a tar of K videos. */
import type { FastifyInstance, FastifyRequest } from "fastify";

import type { RolloutRoute } from "#contract/rollout.ts";
import type { Rollout } from "#rollouts/rollout.ts";

import { readForm } from "../input/multipart.ts";
import { samplingParams } from "../input/params.ts";
import { answerEndOf } from "../plugins/answer-end.ts";
import { identityOf } from "../plugins/keys.ts";
import { requestIdOf } from "../plugins/request-id.ts";
import { sendTar, sendVideo } from "../predict/deliver.ts";
import type { RouteParts } from "../route-parts.ts";
import { BatchForm, IdempotencyHeaders, idempotencyKeyOf, parseCandidates, PredictForm } from "./forms.ts";

const TEXTS = ["seed", "num_steps", "guidance", "prompt", "model"] as const;

export function addPredictRoutes(app: FastifyInstance, parts: RouteParts): void {
  const { models, predictor, normaliseFrame, baseModel } = parts;

  async function predict(request: FastifyRequest, route: RolloutRoute): Promise<Rollout> {
    const idempotency_key = idempotencyKeyOf(request);
    const isBatch = route === "batch";
    const form = await readForm(request, {
      files: isBatch ? ["frame"] : ["frame", "actions"],
      repeatedFiles: isBatch ? ["actions"] : [],
      texts: TEXTS,
    });
    const model = models.ofRequest(form.text("model"), baseModel(request));
    const [seed, num_steps, guidance, prompt] = [
      form.text("seed"),
      form.text("num_steps"),
      form.text("guidance"),
      form.text("prompt"),
    ];
    const params = samplingParams({ seed, num_steps, guidance, prompt }, model.manifest);
    const candidates = parseCandidates(form.repeatedFile("actions"), model.manifest);
    const frame = await normaliseFrame(form.file("frame"), model.manifest.shapes, "frame");
    return predictor.predict({
      identity: identityOf(request),
      request_id: requestIdOf(request),
      route,
      model,
      frame,
      candidates,
      params,
      idempotency_key,
      gone: answerEndOf(request).gone,
    });
  }

  app.post(
    "/v1/predict",
    {
      onRequest: [...parts.paidForm],
      config: { form: PredictForm, answers: { 200: "video/mp4" } },
      schema: { summary: "Dream one rollout; the answer is the video", tags: ["predict"], headers: IdempotencyHeaders },
    },
    async (request, reply) => sendVideo(parts, await predict(request, "predict"), request, reply),
  );

  app.post(
    "/v1/predict/batch",
    {
      onRequest: [...parts.paidForm],
      config: { form: BatchForm, answers: { 200: "application/x-tar" } },
      schema: {
        summary: "Dream K rollouts from one frame; the answer is a tar, all or nothing",
        tags: ["predict"],
        headers: IdempotencyHeaders,
      },
    },
    async (request, reply) => sendTar(parts, await predict(request, "batch"), request, reply),
  );
}
