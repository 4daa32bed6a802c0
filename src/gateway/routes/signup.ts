/** `POST /v1/signup`: a customer and a key for whoever asks, where the operator wants that (SIGNUP=on). */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance } from "fastify";
import { Type } from "typebox";

import { ApiError } from "#contract/errors.ts";
import { KEY_LABEL_CHARS_MAX } from "#contract/limits.ts";
import { signUp } from "#keys/self-service.ts";

import { callerAddress } from "../caller-address.ts";
import type { RatePolicy } from "../gcra.ts";
import { tooManyRequests } from "../rate-limiter.ts";
import { createLocalRateLimiter } from "../rate-limiter-local.ts";
import type { RouteParts } from "../route-parts.ts";
import { SMALL_BODY_BYTES_MAX } from "./keys.ts";

/** Five an hour: enough for a room of people behind one address, too few to collect accounts or to try out e-mail addresses. */
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
  const process = createLocalRateLimiter(clock);
  /** Throws ApiError(rate_limited). */
  return async (ip: string): Promise<void> => {
    const ofAddress = await rateLimiter.take(`signup from ${callerAddress(ip)}`, PER_ADDRESS);
    if (!ofAddress.allowed) throw tooManyRequests("sign-ups from this address", ofAddress);
    const ofProcess = await process.take("signups", PER_PROCESS);
    if (!ofProcess.allowed) throw tooManyRequests("sign-ups on this server", ofProcess);
  };
}

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
      bodyLimit: SMALL_BODY_BYTES_MAX,
      schema: {
        summary: "Become a customer, with a first key and an empty balance",
        description: "Off unless the operator turned it on (403). An e-mail address that is a customer's gets 409.",
        tags: ["keys"],
        security: [],
        body: Type.Object({
          email: Type.String({ maxLength: EMAIL_CHARS_MAX, examples: ["ada@example.com"] }),
          label: Type.Optional(Type.String({ maxLength: KEY_LABEL_CHARS_MAX })),
        }),
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
