/**
 * Requests per key: 50 a second with a burst of 200 unless the key says otherwise. A floor
 * against runaway loops; what a customer may spend is the ledger's business. Every request costs one, a batch too.
 */
import type { onRequestAsyncHookHandler } from "fastify";

import { KEY_BURST_DEFAULT, KEY_RATE_PER_S_DEFAULT } from "#contract/limits.ts";
import type { KeyIdentity } from "#keys/keys.ts";

import type { RatePolicy } from "../gcra.ts";
import { limitHeaders, type RateLimiter, tooManyRequests } from "../rate-limiter.ts";
import { identityOf } from "./keys.ts";

/** A key's own limit where it has one, read with the key on each request: a change holds from the next one on. */
export function ratePolicyOf(key: Pick<KeyIdentity, "rate_per_s" | "burst">): RatePolicy {
  return { per_second: key.rate_per_s ?? KEY_RATE_PER_S_DEFAULT, burst: key.burst ?? KEY_BURST_DEFAULT };
}

/** A hook for routes that need a key; runs after the key check. */
export function createKeyRateLimit(limiter: RateLimiter): onRequestAsyncHookHandler {
  return async (request, reply) => {
    const identity = identityOf(request);
    const policy = ratePolicyOf(identity);
    const decision = await limiter.take(identity.key_id, policy);
    const ofKey = { name: "key", policy };
    reply.headers(limitHeaders(ofKey, decision));
    if (!decision.allowed) {
      throw tooManyRequests(
        `the limit is ${policy.per_second} requests a second with a burst of ${policy.burst} on this key`,
        ofKey,
        decision,
      );
    }
  };
}
