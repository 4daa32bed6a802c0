/**
 * Requests per key: a bucket in this process, 50 a second with a burst of 200 unless the key says otherwise. A floor
 * against runaway loops; what a customer may spend is the ledger's business. Every request costs one, a batch too.
 */
import type { onRequestAsyncHookHandler } from "fastify";

import { type RatePolicy, windowSeconds } from "../gcra.ts";
import { type RateLimiter, retryAfterSeconds, tooManyRequests } from "../rate-limiter.ts";
import { identityOf } from "./keys.ts";

const DEFAULT_RATE: RatePolicy = { per_second: 50, burst: 200 };

/** A hook for routes that need a key; runs after the key check. */
export function createKeyRateLimit(limiter: RateLimiter): onRequestAsyncHookHandler {
  return async (request, reply) => {
    const { key_id, rate_per_s, burst } = identityOf(request);
    const policy = { per_second: rate_per_s ?? DEFAULT_RATE.per_second, burst: burst ?? DEFAULT_RATE.burst };
    const decision = limiter.take(key_id, policy);
    // draft-ietf-httpapi-ratelimit-headers: q requests in w seconds; r left for the next t seconds.
    const window = windowSeconds(policy);
    reply.header("RateLimit-Policy", `"key";q=${policy.burst};w=${window}`);
    reply.header("RateLimit", `"key";r=${decision.remaining};t=${retryAfterSeconds(decision) || window}`);
    if (!decision.allowed) {
      throw tooManyRequests(
        `the limit is ${policy.per_second} requests a second with a burst of ${policy.burst} on this key`,
        decision,
      );
    }
  };
}
