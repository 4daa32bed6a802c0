/** `/v1/webhooks`: where a customer is told what happened, and with which secrets. The log is in webhook-deliveries.ts. */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance } from "fastify";
import { type Static, Type } from "typebox";

import { epochS } from "#contract/epoch.ts";
import { ApiError } from "#contract/errors.ts";
import { type CustomerId, parseEndpointId } from "#contract/ids.ts";
import { WEBHOOK_ENDPOINTS_MAX, WEBHOOK_URL_CHARS_MAX } from "#contract/limits.ts";
import { WEBHOOK_EVENTS, type WebhookEvent } from "#contract/webhooks.ts";
import { Nullable } from "#contract/nullable.ts";
import { checkOutboundUrl } from "#platform/outbound.ts";
import { customerSigning, rotateCustomerSigning } from "#webhooks/customer-signing.ts";
import {
  changeEndpoint,
  createEndpoint,
  deleteEndpoint,
  type Endpoint,
  endpointsOf,
  findEndpoint,
  rotateEndpoint,
} from "#webhooks/endpoints.ts";
import { SubscribedEvent, WebhookEnvelope, webhookEnvelope } from "#webhooks/envelope.ts";
import { type Generation, previousSignsUntil, secretText, type Signer, webhookRoot } from "#webhooks/secrets.ts";

import { knownFields } from "../input/known-fields.ts";
import { identityOf } from "../plugins/keys.ts";
import type { RouteParts } from "../route-parts.ts";
import { SMALL_BODY_BYTES_MAX } from "./keys.ts";

const DESCRIPTION_CHARS_MAX = 200;

const Url = Type.String({ maxLength: WEBHOOK_URL_CHARS_MAX, examples: ["https://example.com/hooks/dream"] });
const Events = Type.Array(SubscribedEvent, { minItems: 1, description: "Absent: all that there are." });
/** Not a union of two schemas, in which null would be taken for an empty text before the second one is tried. */
const Description = Type.Unsafe<string | null>({
  type: ["string", "null"],
  maxLength: DESCRIPTION_CHARS_MAX,
  pattern: "^[^\\u0000]*$", // which PostgreSQL does not store
});

const Secret = Type.Object({
  object: Type.Literal("webhook_secret"),
  secret: Type.String({ description: "whsec_…, as libraries for Standard Webhooks take it." }),
  previous_signs_until: Nullable(
    Type.Integer({ description: "Epoch seconds: after a rotation, until when the secret before signs, too." }),
  ),
});

const NewWebhook = Type.Object(
  { url: Url, events: Type.Optional(Events), description: Type.Optional(Description) },
  { additionalProperties: false },
);
const WebhookChange = Type.Object(
  {
    url: Type.Optional(Url),
    events: Type.Optional(Events),
    description: Type.Optional(Description),
    enabled: Type.Optional(Type.Boolean({ description: "False: nothing is sent to it, and what waits for it fails." })),
  },
  { additionalProperties: false, minProperties: 1 },
);
const Params = Type.Object({ id: Type.String() });

/** In the order of the contract, and each once. */
const inOrder = (events: readonly WebhookEvent[]): WebhookEvent[] =>
  WEBHOOK_EVENTS.filter((event) => events.includes(event));

export const webhookNotFound = (): ApiError =>
  new ApiError("webhook_not_found", "no such webhook of yours; expected endpoint_ and 32 hexadecimal digits");

export function addWebhookRoutes(bare: FastifyInstance, parts: RouteParts): void {
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();
  const { db, keyed, clock, random, config } = parts;
  const allowPrivate = config.OUTBOUND_PRIVATE === "on";
  const onRequest = [...keyed];
  const tags = ["webhooks"];

  async function own(id: string, customerId: CustomerId): Promise<Endpoint> {
    const parsed = parseEndpointId(id);
    const endpoint = parsed && (await findEndpoint(db, parsed, customerId));
    if (!endpoint) throw webhookNotFound();
    return endpoint;
  }

  async function secretOf(signer: Signer, generation: Generation): Promise<Static<typeof Secret>> {
    const root = await webhookRoot(db, random);
    return {
      object: "webhook_secret",
      secret: secretText(root, signer, generation),
      previous_signs_until: epochS(previousSignsUntil(generation, clock.now())),
    };
  }
  const secretOfEndpoint = (endpoint: Endpoint) => secretOf({ kind: "endpoint", id: endpoint.id }, endpoint);

  app.post(
    "/v1/webhooks",
    {
      onRequest,
      preValidation: knownFields(NewWebhook, { mayBeAbsent: false }),
      bodyLimit: SMALL_BODY_BYTES_MAX,
      schema: {
        summary: "Be told of rollouts and datasets at a URL of yours",
        description: `The answer has the secret that signs. At most ${WEBHOOK_ENDPOINTS_MAX} a customer (409). How to verify: docs/webhooks.md.`,
        tags,
        body: NewWebhook,
        response: { 201: Type.Object({ ...WebhookEnvelope.properties, secret: Type.String() }) },
      },
    },
    async (request, reply) => {
      const { customer_id } = identityOf(request);
      const { url, events = [...WEBHOOK_EVENTS], description = null } = request.body;
      checkOutboundUrl(url, "url", allowPrivate);
      const endpoint = await createEndpoint(db, customer_id, { url, events: inOrder(events), description }, random);
      const { secret } = await secretOfEndpoint(endpoint);
      // A secret: no cache may keep it.
      return reply
        .code(201)
        .header("Cache-Control", "no-store")
        .send({ ...webhookEnvelope(endpoint), secret });
    },
  );

  app.get(
    "/v1/webhooks",
    {
      onRequest,
      schema: {
        summary: "Your webhooks, oldest first",
        tags,
        response: { 200: Type.Object({ object: Type.Literal("list"), data: Type.Array(WebhookEnvelope) }) },
      },
    },
    async (request) => {
      const endpoints = await endpointsOf(db, identityOf(request).customer_id);
      return { object: "list" as const, data: endpoints.map(webhookEnvelope) };
    },
  );

  app.get(
    "/v1/webhooks/signing-secret",
    {
      onRequest,
      schema: {
        summary: "The secret that signs what goes to the `webhook_url` of a rollout or dataset",
        tags,
        response: { 200: Secret },
      },
    },
    async (request, reply) => {
      const { customer_id: id } = identityOf(request);
      reply.header("Cache-Control", "no-store");
      return secretOf({ kind: "customer", id }, await customerSigning(db, id));
    },
  );

  app.post(
    "/v1/webhooks/signing-secret/rotate",
    {
      onRequest,
      schema: {
        summary: "A new secret for every `webhook_url`; the one before signs, too, for 24 hours",
        tags,
        response: { 200: Secret },
      },
    },
    async (request, reply) => {
      const { customer_id: id } = identityOf(request);
      reply.header("Cache-Control", "no-store");
      return secretOf({ kind: "customer", id }, await rotateCustomerSigning(db, id, new Date(clock.now())));
    },
  );

  app.get(
    "/v1/webhooks/:id",
    { onRequest, schema: { summary: "A webhook of yours", tags, params: Params, response: { 200: WebhookEnvelope } } },
    async (request) => webhookEnvelope(await own(request.params.id, identityOf(request).customer_id)),
  );

  app.patch(
    "/v1/webhooks/:id",
    {
      onRequest,
      preValidation: knownFields(WebhookChange, { mayBeAbsent: false }),
      bodyLimit: SMALL_BODY_BYTES_MAX,
      schema: {
        summary: "Change a webhook of yours; what is absent stays",
        tags,
        params: Params,
        body: WebhookChange,
        response: { 200: WebhookEnvelope },
      },
    },
    async (request) => {
      const { customer_id } = identityOf(request);
      const { events, ...change } = request.body;
      if (change.url !== undefined) checkOutboundUrl(change.url, "url", allowPrivate);
      const id = parseEndpointId(request.params.id);
      const wanted = events === undefined ? change : { ...change, events: inOrder(events) };
      const changed = id && (await changeEndpoint(db, id, customer_id, wanted));
      if (!changed) throw webhookNotFound();
      return webhookEnvelope(changed);
    },
  );

  app.delete(
    "/v1/webhooks/:id",
    {
      onRequest,
      schema: {
        summary: "End a webhook of yours; what waits for it fails",
        tags,
        params: Params,
        response: {
          200: Type.Object({ id: Type.String(), object: Type.Literal("webhook"), deleted: Type.Literal(true) }),
        },
      },
    },
    async (request) => {
      const id = parseEndpointId(request.params.id);
      if (!id || !(await deleteEndpoint(db, id, identityOf(request).customer_id))) throw webhookNotFound();
      return { id, object: "webhook" as const, deleted: true as const };
    },
  );

  app.get(
    "/v1/webhooks/:id/secret",
    {
      onRequest,
      schema: { summary: "The secret that signs what goes to it", tags, params: Params, response: { 200: Secret } },
    },
    async (request, reply) => {
      reply.header("Cache-Control", "no-store");
      return secretOfEndpoint(await own(request.params.id, identityOf(request).customer_id));
    },
  );

  app.post(
    "/v1/webhooks/:id/rotate-secret",
    {
      onRequest,
      schema: {
        summary: "A new secret; the one before signs, too, for 24 hours",
        tags,
        params: Params,
        response: { 200: Secret },
      },
    },
    async (request, reply) => {
      const id = parseEndpointId(request.params.id);
      const now = new Date(clock.now());
      const rotated = id && (await rotateEndpoint(db, id, identityOf(request).customer_id, now));
      if (!rotated) throw webhookNotFound();
      reply.header("Cache-Control", "no-store");
      return secretOfEndpoint(rotated);
    },
  );
}
