/** `POST /v1/rollouts` answers with an envelope that links to the video; `GET /v1/rollouts/{id}` shows it again. */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { Type } from "typebox";

import { ApiError } from "#contract/errors.ts";
import { jobIdOf, parseRolloutId } from "#contract/ids.ts";
import { envelopeOf, RolloutEnvelope } from "#rollouts/envelope.ts";
import { findRollout, queuePosition } from "#rollouts/find.ts";
import { isTerminal } from "#rollouts/lifecycle.ts";
import type { Rollout } from "#rollouts/rollout.ts";

import { identityOf } from "../plugins/keys.ts";
import { noteDelivery } from "../predict/deliver.ts";
import type { RouteParts } from "../route-parts.ts";
import { IdempotencyHeaders, RolloutForm } from "./forms.ts";
import { readCall } from "./read-inputs.ts";

/** When to look again at a rollout that has not finished. */
const RETRY_AFTER_S = 1;

export function addRolloutRoutes(bare: FastifyInstance, parts: RouteParts): void {
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();
  const { db, models, predictor, queueOf, clock, videoLinks, publicUrl } = parts;

  async function envelope(rollout: Rollout, request: FastifyRequest): Promise<RolloutEnvelope> {
    const waits = !isTerminal(rollout.status);
    const job =
      rollout.status === "dispatched" ? await queueOf(rollout.model).find(jobIdOf(rollout.id, rollout.attempt)) : null;
    const running = job?.state === "active";
    return envelopeOf(rollout, {
      shapes: models.find(rollout.model)?.manifest.shapes ?? null,
      videos: await videoLinks.of(rollout, publicUrl(request), clock.now()),
      running,
      queuePosition: waits && !running ? await queuePosition(db, rollout) : null,
    });
  }

  app.post(
    "/v1/rollouts",
    {
      onRequest: [...parts.paidForm],
      config: { form: RolloutForm },
      schema: {
        summary: "Dream one rollout; the answer links to the video",
        tags: ["predict"],
        headers: IdempotencyHeaders,
        response: { 200: RolloutEnvelope },
      },
    },
    async (request) => {
      const rollout = await predictor.predict(await readCall(request, "rollouts", parts));
      // The caller fetches the video by its link, so a stored result is a delivered one.
      await noteDelivery(parts, rollout.id);
      return envelope(rollout, request);
    },
  );

  app.get(
    "/v1/rollouts/:id",
    {
      onRequest: [...parts.keyed],
      schema: {
        summary: "A rollout of yours",
        tags: ["predict"],
        params: Type.Object({ id: Type.String() }),
        response: { 200: RolloutEnvelope },
      },
    },
    async (request, reply) => {
      const id = parseRolloutId(request.params.id);
      const rollout = id && (await findRollout(db, id, identityOf(request).customer_id));
      if (!rollout) {
        throw new ApiError(
          "rollout_not_found",
          "no such rollout of yours; expected rollout_ and 32 hexadecimal digits",
        );
      }
      if (!isTerminal(rollout.status)) reply.header("Retry-After", RETRY_AFTER_S);
      return envelope(rollout, request);
    },
  );
}
