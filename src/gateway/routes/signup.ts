/** `POST /v1/signup`: a customer and a key for whoever asks, where the operator wants that (SIGNUP=on). */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance } from "fastify";
import { Type } from "typebox";

import { ApiError } from "#contract/errors.ts";
import { KEY_LABEL_CHARS_MAX } from "#contract/limits.ts";
import { checkLabel } from "#keys/mint.ts";
import { signUp } from "#keys/self-service.ts";

import { decideRate, type RatePolicy } from "../gcra.ts";
import { knownFields } from "../input/known-fields.ts";
import { addressBucket, tooManyRequests } from "../rate-limiter.ts";
import type { RouteParts } from "../route-parts.ts";
import { SMALL_BODY_BYTES_MAX } from "./keys.ts";

/** Five an hour: enough for a room of people behind one address, too few to collect accounts. */
const PER_ADDRESS: RatePolicy = { per_second: 5 / 3600, burst: 5 };
/** What one gateway takes in from everybody together, so that many addresses at once do not fill the database either. */
const PER_PROCESS: RatePolicy = { per_second: 1, burst: 20 };

const EMAIL_CHARS_MAX = 254;
/** As browsers check `<input type="email">`, and with a dot in the domain. */
const EMAIL =
  /^[a-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])$/i;

export const isEmail = (text: string): boolean => text.length <= EMAIL_CHARS_MAX && EMAIL.test(text);

/** Once for all base URLs of this process. */
export function createSignupLimit({ rateLimiter, clock }: Pick<RouteParts, "rateLimiter" | "clock">) {
  let fullAtMs: number | undefined;
  function decideForProcess(): number {
    const { full_at_ms, ...decision } = decideRate(fullAtMs, PER_PROCESS, clock.now());
    if (!decision.allowed)
      throw tooManyRequests("sign-ups on this server", { name: "server", policy: PER_PROCESS }, decision);
    return full_at_ms;
  }

  /**
   * Looks at the process first, so that a flood from many addresses leaves no bucket for each of them, and takes from it
   * last, so that one address that is refused uses up nobody else's sign-ups. Throws ApiError(rate_limited).
   */
  return async (ip: string): Promise<void> => {
    decideForProcess();
    const ofAddress = await rateLimiter.take(addressBucket("signup", ip), PER_ADDRESS);
    const limit = { name: "sign-ups", policy: PER_ADDRESS };
    if (!ofAddress.allowed) throw tooManyRequests("sign-ups from this address", limit, ofAddress);
    fullAtMs = decideForProcess();
  };
}

const SignUp = Type.Object(
  {
    email: Type.String({
      maxLength: EMAIL_CHARS_MAX,
      examples: ["ada@example.com"],
      description: "Where receipts go. It is not checked, and is not a name for the customer: keep the key.",
    }),
    label: Type.Optional(Type.String({ maxLength: KEY_LABEL_CHARS_MAX })),
  },
  { additionalProperties: false },
);

export function addSignupRoute(bare: FastifyInstance, { config, db, random, signupLimit }: RouteParts): void {
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();

  app.post(
    "/v1/signup",
    {
      // Before the body, so that a server without sign-up says so to anything.
      onRequest: async () => {
        if (config.SIGNUP === "off") {
          throw new ApiError(
            "signup_disabled",
            "signing up is off on this server (SIGNUP=on turns it on); its operator makes keys with: " +
              "dream-engine keys create --customer <e-mail>",
          );
        }
      },
      preValidation: knownFields(SignUp),
      bodyLimit: SMALL_BODY_BYTES_MAX,
      schema: {
        summary: "Become a customer, with a first key and an empty balance",
        description:
          "Off unless the operator turned it on (403). Each sign-up is a new customer, also with the same address.",
        tags: ["keys"],
        security: [],
        body: SignUp,
        response: {
          201: Type.Object({
            api_key: Type.String({ description: "The key itself: shown this once, only its hash is stored." }),
            customer_id: Type.String(),
            key_id: Type.String(),
            prefix: Type.String(),
            balance_mils: Type.Integer(),
          }),
        },
      },
    },
    async (request, reply) => {
      const { email, label } = request.body;
      if (!isEmail(email)) {
        throw new ApiError("invalid_input", "email: expected an e-mail address such as ada@example.com");
      }
      if (label !== undefined) checkLabel(label);
      // Only what would make a customer counts; a typo costs nothing.
      await signupLimit(request.ip);
      const signedUp = await signUp(db, { email, label }, random);
      // A secret: no cache may keep it.
      return reply
        .code(201)
        .header("Cache-Control", "no-store")
        .send({ ...signedUp, balance_mils: 0 });
    },
  );
}
