/** `POST /v1/predict` answers with the video itself, `POST /v1/predict/batch` with a tar of K videos. */
import type { FastifyInstance } from "fastify";

import { sendTar, sendVideo } from "../predict/deliver.ts";
import type { RouteParts } from "../route-parts.ts";
import { BatchForm, IdempotencyHeaders, PredictForm } from "./forms.ts";
import { readCall } from "./read-inputs.ts";

export function addPredictRoutes(app: FastifyInstance, parts: RouteParts): void {
  const { predictor } = parts;

  app.post(
    "/v1/predict",
    {
      onRequest: [...parts.paidForm],
      config: { form: PredictForm, answers: { 200: "video/mp4" } },
      schema: { summary: "Dream one rollout; the answer is the video", tags: ["predict"], headers: IdempotencyHeaders },
    },
    async (request, reply) => {
      const rollout = await predictor.predict(await readCall(request, "predict", parts));
      return sendVideo(parts, rollout, request, reply);
    },
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
    async (request, reply) => {
      const rollout = await predictor.predict(await readCall(request, "batch", parts));
      return sendTar(parts, rollout, request, reply);
    },
  );
}
