/** `/v1/webhooks/deliveries`: what was sent where, what came back, and once more. And a delivery to try a webhook with. */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance } from "fastify";
import { type Static, Type } from "typebox";

import { epochS } from "#contract/epoch.ts";
import { ApiError } from "#contract/errors.ts";
import { parseDatasetId, parseDeliveryId, parseEndpointId, parseRolloutId } from "#contract/ids.ts";
import { LIST_PAGE_DEFAULT, LIST_PAGE_MAX } from "#contract/limits.ts";
import { DELIVERY_STATES, type DeliveryState } from "#contract/webhooks.ts";
import { Nullable } from "#contract/nullable.ts";
import { findEndpoint } from "#webhooks/endpoints.ts";
import { attemptsOf, type Delivery, findDelivery, listDeliveries, resendDelivery } from "#webhooks/log.ts";
import { tellTest } from "#webhooks/outbox.ts";

import { knownParameters } from "../input/known-fields.ts";
import { identityOf } from "../plugins/keys.ts";
import type { RouteParts } from "../route-parts.ts";
import { webhookNotFound } from "./webhooks.ts";

const Time = Nullable(Type.Integer({ description: "Epoch seconds." }));
const State = Type.Unsafe<DeliveryState>(Type.Union(DELIVERY_STATES.map((state) => Type.Literal(state))));

const WebhookDelivery = Type.Object({
  id: Type.String({
    description: "The `webhook-id` header of every attempt.",
    examples: ["msg_0123456789abcdef0123456789abcdef"],
  }),
  object: Type.Literal("webhook_delivery"),
  endpoint: Nullable(Type.String({ description: "Null: to a `webhook_url`." })),
  url: Type.String(),
  event: Type.String({ examples: ["rollout.succeeded"], description: "`webhook.test`: it was asked for." }),
  rollout: Nullable(Type.String()),
  dataset: Nullable(Type.String()),
  state: State,
  reason: Nullable(Type.String({ description: "Why it failed.", examples: ["given up after 10 attempts"] })),
  attempts: Type.Integer({ description: "Begun so far." }),
  last_status: Nullable(
    Type.Integer({ description: "What the receiver answered to the last attempt that has ended." }),
  ),
  last_error: Nullable(Type.String({ description: "Why there was no answer to it." })),
  sending: Type.Boolean({ description: "Whether it is being sent right now." }),
  next_attempt_at: Nullable(
    Type.Integer({ description: "Epoch seconds; null while it is being sent, and at the end." }),
  ),
  created: Type.Integer({ description: "Epoch seconds." }),
  finished: Time,
});

const Attempt = Type.Object({
  n: Type.Integer({ description: "From 1. A number is missing where a crash of ours cut the attempt off." }),
  at: Type.Number({ description: "Epoch seconds." }),
  duration_ms: Type.Integer(),
  status: Nullable(Type.Integer({ description: "What the receiver answered." })),
  error: Nullable(Type.String({ description: "Why there was no answer." })),
  excerpt: Nullable(Type.String({ description: "The beginning of the answer's body." })),
});

const Params = Type.Object({ id: Type.String() });

const Query = Type.Object({
  endpoint: Type.Optional(Type.String()),
  rollout: Type.Optional(Type.String()),
  dataset: Type.Optional(Type.String()),
  state: Type.Optional(State),
  limit: Type.Integer({ default: LIST_PAGE_DEFAULT, minimum: 1, maximum: LIST_PAGE_MAX }),
  after: Type.Optional(Type.String({ description: "`next` of an earlier answer: what comes after it." })),
});

function bodyOf(delivery: Delivery): Static<typeof WebhookDelivery> {
  return {
    id: delivery.id,
    object: "webhook_delivery",
    endpoint: delivery.endpoint_id,
    url: delivery.url,
    event: delivery.event,
    rollout: delivery.rollout_id,
    dataset: delivery.dataset_id,
    state: delivery.state,
    reason: delivery.reason,
    attempts: delivery.attempts,
    last_status: delivery.last_status,
    last_error: delivery.last_error,
    sending: delivery.sending,
    next_attempt_at: delivery.state === "pending" && !delivery.sending ? epochS(delivery.next_attempt_at) : null,
    created: epochS(delivery.created_at),
    finished: epochS(delivery.finished_at),
  };
}

/** Throws ApiError(invalid_input) for what cannot be such an id; null where none was given. */
function idOf<T>(text: string | undefined, field: string, prefix: string, parse: (text: string) => T | null): T | null {
  if (text === undefined) return null;
  const id = parse(text);
  if (id !== null) return id;
  const got = JSON.stringify(text.slice(0, 60));
  throw new ApiError("invalid_input", `${field}: expected ${prefix} and 32 hexadecimal digits, got ${got}`);
}

const notFound = (): ApiError =>
  new ApiError("webhook_not_found", "no such delivery of yours; expected msg_ and 32 hexadecimal digits");

export function addWebhookDeliveryRoutes(bare: FastifyInstance, { db, keyed }: RouteParts): void {
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();
  const onRequest = [...keyed];
  const tags = ["webhooks"];

  app.post(
    "/v1/webhooks/:id/test",
    {
      onRequest,
      schema: {
        summary: "Send `webhook.test` to it now, to see whether it works",
        description:
          "Signed as everything that it gets, whatever its `events` are, and sent once: `GET /v1/webhooks/deliveries/{id}` has the answer. " +
          "A disabled one is sent nothing (409), and no answer to a test disables one.",
        tags,
        params: Params,
        response: { 202: WebhookDelivery },
      },
    },
    async (request, reply) => {
      const { customer_id } = identityOf(request);
      const id = parseEndpointId(request.params.id);
      const queued = id && (await tellTest(db, id, customer_id));
      const delivery = queued && (await findDelivery(db, queued, customer_id));
      if (delivery) return reply.code(202).send(bodyOf(delivery));
      const endpoint = id && (await findEndpoint(db, id, customer_id));
      if (!endpoint) throw webhookNotFound();
      throw new ApiError(
        "wrong_state",
        `this webhook is disabled (${endpoint.disabled_reason}): PATCH /v1/webhooks/{id} {"enabled": true} first`,
      );
    },
  );

  app.get(
    "/v1/webhooks/deliveries",
    {
      onRequest,
      preValidation: knownParameters(Query),
      schema: {
        summary: "What was sent to your webhooks and webhook_urls in the last 30 days, newest first",
        tags,
        querystring: Query,
        response: {
          200: Type.Object({
            object: Type.Literal("list"),
            data: Type.Array(WebhookDelivery),
            has_more: Type.Boolean(),
            next: Nullable(Type.String()),
          }),
        },
      },
    },
    async (request) => {
      const { endpoint, rollout, dataset, state = null, limit, after } = request.query;
      const found = await listDeliveries(db, identityOf(request).customer_id, {
        endpoint: idOf(endpoint, "endpoint", "endpoint_", parseEndpointId),
        rollout: idOf(rollout, "rollout", "rollout_", parseRolloutId),
        dataset: idOf(dataset, "dataset", "dataset_", parseDatasetId),
        after: idOf(after, "after", "msg_", parseDeliveryId),
        state,
        limit: limit + 1,
      });
      const data = found.slice(0, limit);
      const has_more = found.length > limit;
      return {
        object: "list" as const,
        data: data.map(bodyOf),
        has_more,
        next: has_more ? (data.at(-1)?.id ?? null) : null,
      };
    },
  );

  app.get(
    "/v1/webhooks/deliveries/:id",
    {
      onRequest,
      schema: {
        summary: "One delivery with its attempts",
        tags,
        params: Params,
        response: { 200: Type.Object({ ...WebhookDelivery.properties, log: Type.Array(Attempt) }) },
      },
    },
    async (request) => {
      const id = parseDeliveryId(request.params.id);
      const delivery = id && (await findDelivery(db, id, identityOf(request).customer_id));
      if (!delivery) throw notFound();
      const log = (await attemptsOf(db, delivery.id)).map((each) => ({ ...each, at: each.at.getTime() / 1000 }));
      return { ...bodyOf(delivery), log };
    },
  );

  app.post(
    "/v1/webhooks/deliveries/:id/resend",
    {
      onRequest,
      schema: {
        summary: "Send it again now, whatever became of it",
        description:
          "Where it had ended, with all its retries before it again. One that is being sent right now goes out once more afterwards.",
        tags,
        params: Params,
        response: { 202: WebhookDelivery },
      },
    },
    async (request, reply) => {
      const id = parseDeliveryId(request.params.id);
      const delivery = id && (await resendDelivery(db, id, identityOf(request).customer_id));
      if (!delivery) throw notFound();
      return reply.code(202).send(bodyOf(delivery));
    },
  );
}
