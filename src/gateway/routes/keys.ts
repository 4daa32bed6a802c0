/** `/v1/keys`: a customer's own keys, so that rotating one needs nobody: mint, use the new one, delete the old one. */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance } from "fastify";
import { Type } from "typebox";

import { ApiError } from "#contract/errors.ts";
import { KEY_LABEL_CHARS_MAX, KEYS_PER_CUSTOMER_MAX } from "#contract/limits.ts";
import { checkLabel } from "#keys/mint.ts";
import { keysOfCustomer, mintOwnKey, type OwnKey, revokeOwnKey } from "#keys/self-service.ts";

import type { RatePolicy } from "../gcra.ts";
import { knownFields } from "../input/known-fields.ts";
import { identityOf } from "../plugins/keys.ts";
import { ratePolicyOf } from "../plugins/rate-limit.ts";
import { tooManyRequests } from "../rate-limiter.ts";
import type { RouteParts } from "../route-parts.ts";

/** A label and a date; a body of a megabyte is somebody's mistake. */
export const SMALL_BODY_BYTES_MAX = 4 * 1024;

/**
 * New keys of one customer: all of them at once, and as many again within an hour. Each begins with a full bucket of its
 * own, so this is what a customer gains who rotates to get round a key's limit.
 */
const MINTED: RatePolicy = { per_second: KEYS_PER_CUSTOMER_MAX / 3600, burst: KEYS_PER_CUSTOMER_MAX };

const Time = Type.Union([Type.Number(), Type.Null()], { description: "Epoch seconds; null: never." });

const Key = Type.Object({
  id: Type.String(),
  object: Type.Literal("api_key"),
  prefix: Type.String({ description: "The key's first characters, to recognise it by." }),
  label: Type.Union([Type.String(), Type.Null()]),
  created: Type.Number({ description: "Epoch seconds." }),
  last_used: Type.Union([Type.Number(), Type.Null()], { description: "Epoch seconds, up to half a minute late." }),
  expires_at: Time,
  revoked_at: Time,
  rate_per_s: Type.Integer({ description: "Requests a second that its bucket regains." }),
  burst: Type.Integer({ description: "Requests at once." }),
  current: Type.Boolean({ description: "The key that this request came with." }),
});

const NewKey = Type.Object(
  {
    label: Type.Optional(Type.String({ maxLength: KEY_LABEL_CHARS_MAX })),
    expires_at: Type.Optional(
      Type.Integer({ description: "Epoch seconds, at most the asking key's own end, which is also the default." }),
    ),
  },
  { additionalProperties: false },
);

const CreatedKey = Type.Object({
  ...Key.properties,
  api_key: Type.String({ description: "The key itself: shown this once, only its hash is stored." }),
});

const epochSeconds = (time: Date | null): number | null => (time === null ? null : time.getTime() / 1000);

function bodyOf(key: OwnKey, askingId: string) {
  const { per_second, burst } = ratePolicyOf(key);
  return {
    id: key.key_id,
    object: "api_key" as const,
    prefix: key.prefix,
    label: key.label,
    created: key.created_at.getTime() / 1000,
    last_used: epochSeconds(key.last_used_at),
    expires_at: epochSeconds(key.expires_at),
    revoked_at: epochSeconds(key.revoked_at),
    rate_per_s: per_second,
    burst,
    current: key.key_id === askingId,
  };
}

export function addKeyRoutes(bare: FastifyInstance, { db, keyed, clock, random, rateLimiter }: RouteParts): void {
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();

  app.get(
    "/v1/keys",
    {
      onRequest: [...keyed],
      schema: {
        summary: "Your keys: those that can be used first, then the others, newest first",
        tags: ["keys"],
        response: { 200: Type.Object({ object: Type.Literal("list"), data: Type.Array(Key) }) },
      },
    },
    async (request) => {
      const { customer_id, key_id } = identityOf(request);
      const keys = await keysOfCustomer(db, customer_id);
      return { object: "list" as const, data: keys.map((key) => bodyOf(key, key_id)) };
    },
  );

  app.post(
    "/v1/keys",
    {
      onRequest: [...keyed],
      preValidation: knownFields(NewKey),
      bodyLimit: SMALL_BODY_BYTES_MAX,
      schema: {
        summary: "Another key on the same balance, with the limits of the one that asks",
        description: `At most ${KEYS_PER_CUSTOMER_MAX} keys that can be used (409), and no more than that made at once or within an hour (429). The answer is the only one with the key in it.`,
        tags: ["keys"],
        body: Type.Union([NewKey, Type.Null()]),
        response: { 201: CreatedKey },
      },
    },
    async (request, reply) => {
      const asking = identityOf(request);
      const { label, expires_at } = request.body ?? {};
      const wanted = { label, expires_at: expires_at === undefined ? undefined : endOf(expires_at, clock.now()) };
      // A typo costs nothing.
      if (label !== undefined) checkLabel(label);
      const minted = await rateLimiter.take(`minted for ${asking.customer_id}`, MINTED);
      if (!minted.allowed)
        throw tooManyRequests("new keys of this customer", { name: "new keys", policy: MINTED }, minted);
      const { key, api_key } = await mintOwnKey(db, asking, wanted, random);
      // A secret: no cache may keep it.
      return reply
        .code(201)
        .header("Cache-Control", "no-store")
        .send({ ...bodyOf(key, asking.key_id), api_key });
    },
  );

  app.delete(
    "/v1/keys/:id",
    {
      onRequest: [...keyed],
      schema: {
        summary: "End a key of yours; from then on it pays for nothing",
        description:
          "The last one that can be used only with `force=true` (409), because nobody reaches the balance then.",
        tags: ["keys"],
        params: Type.Object({ id: Type.String() }),
        querystring: Type.Object({ force: Type.Boolean({ default: false }) }),
        response: { 200: Key },
      },
    },
    async (request) => {
      const asking = identityOf(request);
      const { force } = request.query;
      return bodyOf(await revokeOwnKey(db, asking, request.params.id, { force }), asking.key_id);
    },
  );
}

/** As far ahead as a JavaScript date and PostgreSQL agree on, and then some. */
const LAST_SECOND = Date.UTC(9999, 11, 31) / 1000;

function endOf(epochS: number, nowMs: number): Date {
  if (epochS * 1000 > nowMs && epochS <= LAST_SECOND) return new Date(epochS * 1000);
  throw new ApiError("invalid_input", `expires_at: expected a time to come in epoch seconds, got ${epochS}`);
}
