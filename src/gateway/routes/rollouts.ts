/** Rollouts by id: submitted, shown, waited for, listed and cancelled. `POST /v1/rollouts` is answered with an envelope. */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { Type } from "typebox";

import { ApiError } from "#contract/errors.ts";
import { parseRolloutId } from "#contract/ids.ts";
import { LONG_POLL_S_MAX } from "#contract/limits.ts";
import { RolloutEnvelope } from "#rollouts/envelope.ts";
import { findRollout } from "#rollouts/find.ts";
import { isTerminal } from "#rollouts/lifecycle.ts";
import type { Rollout } from "#rollouts/rollout.ts";

import { answerEndOf } from "../plugins/answer-end.ts";
import { identityOf } from "../plugins/keys.ts";
import { noteDelivery } from "../predict/deliver.ts";
import type { RouteParts } from "../route-parts.ts";
import { IdempotencyHeaders, RolloutForm } from "./forms.ts";
import { readCall } from "./read-inputs.ts";

const RolloutParams = Type.Object({ id: Type.String() });

export function addRolloutRoutes(bare: FastifyInstance, parts: RouteParts): void {
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();
  const { db, predictor, clock, pollWaits, draining, rolloutViews } = parts;

  async function ownRollout(request: FastifyRequest, text: string): Promise<Rollout> {
    const id = parseRolloutId(text);
    const rollout = id && (await findRollout(db, id, identityOf(request).customer_id));
    if (rollout) return rollout;
    throw new ApiError("rollout_not_found", "no such rollout of yours; expected rollout_ and 32 hexadecimal digits");
  }

  app.post(
    "/v1/rollouts",
    {
      onRequest: [...parts.paidForm],
      config: { form: RolloutForm },
      schema: {
        summary: "Dream one rollout; the answer links to the video, or, with mode async, to the rollout",
        description:
          'With mode "async" the answer is 202 as soon as the rollout is paid and queued, with `Location` and ' +
          "`Retry-After`; it goes on when the connection breaks. Under an Idempotency-Key whose rollout has ended, 200.",
        tags: ["rollouts"],
        headers: IdempotencyHeaders,
        response: { 200: RolloutEnvelope, 202: RolloutEnvelope },
      },
    },
    async (request, reply) => {
      const call = await readCall(request, "rollouts", parts);
      if (call.mode.kind === "async") {
        const rollout = await predictor.submit(call, call.mode.expires_in_s);
        const { envelope, retryAfterS } = await rolloutViews.of(rollout, request);
        if (retryAfterS !== null) reply.header("Retry-After", retryAfterS);
        reply.header("Location", `${baseUrlOf(request, parts)}/v1/rollouts/${rollout.id}`);
        return reply.code(isTerminal(rollout.status) ? 200 : 202).send(envelope);
      }
      const rollout = await predictor.predict(call);
      // The caller fetches the video by its link, so a stored result is a delivered one.
      await noteDelivery(parts, rollout.id);
      return (await rolloutViews.of(rollout, request)).envelope;
    },
  );

  app.get(
    "/v1/rollouts/:id",
    {
      onRequest: [...parts.keyed],
      schema: {
        summary: "A rollout of yours; waits for its end if you like",
        description: "Before its end with `Retry-After`: when it is worth to look again.",
        tags: ["rollouts"],
        params: RolloutParams,
        querystring: Type.Object({
          wait: Type.Integer({
            minimum: 0,
            maximum: LONG_POLL_S_MAX,
            default: 0,
            description: "Seconds to wait for its end; answered at once when it comes.",
          }),
        }),
        response: { 200: RolloutEnvelope },
      },
    },
    async (request, reply) => {
      const found = await ownRollout(request, request.params.id);
      const rollout = (await waited(found, request, request.query.wait)) ?? (await ownRollout(request, found.id));
      const { envelope, retryAfterS } = await rolloutViews.of(rollout, request);
      if (retryAfterS !== null) reply.header("Retry-After", retryAfterS);
      return envelope;
    },
  );

  /** The rollout when it ends; null when nobody waits any more, or may: a stopping server has its callers ask again. */
  async function waited(rollout: Rollout, request: FastifyRequest, seconds: number): Promise<Rollout | null> {
    if (isTerminal(rollout.status) || seconds === 0) return rollout;
    const { gone } = answerEndOf(request);
    const until = clock.now() + seconds * 1000;
    const giveUp = AbortSignal.any([gone, draining]);
    const finished = await pollWaits.untilFinished(rollout.id, rollout.customer_id, until, giveUp);
    if (gone.aborted) throw new ApiError("client_closed_request", "the caller stopped waiting; the rollout goes on");
    return finished;
  }

  app.post(
    "/v1/rollouts/:id/cancel",
    {
      onRequest: [...parts.keyed],
      schema: {
        summary: "Cancel a rollout of yours; refunded in full",
        description:
          "What waits is cancelled at once, what runs at its next step; whoever waits for it is told. One that is " +
          "cancelled already is shown (200), one that has ended otherwise is not changed (409).",
        tags: ["rollouts"],
        params: RolloutParams,
        response: { 200: RolloutEnvelope },
      },
    },
    async (request) => {
      const found = await ownRollout(request, request.params.id);
      const rollout = (isTerminal(found.status) ? null : await parts.cancelRollout(found)) ?? found;
      if (rollout.status !== "cancelled") {
        throw new ApiError("rollout_finished", `${rollout.id} has ended before: it is ${rollout.status}`);
      }
      return (await rolloutViews.of(rollout, request)).envelope;
    },
  );
}

/** The base URL that this request used, which may be a model's own. */
function baseUrlOf(request: FastifyRequest, { publicUrl }: RouteParts): string {
  return request.baseModel ? `${publicUrl(request)}/m/${request.baseModel.slug}` : publicUrl(request);
}
