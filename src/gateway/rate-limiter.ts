/**
 * Buckets by name (a key, an address) behind one port. Three forms: in this process (rate-limiter-local.ts), in Redis
 * and in PostgreSQL, which several gateways share and whose server's clock decides. Losing a bucket costs nothing but a
 * fresh burst, so none of them is durable.
 */
import { ApiError } from "#contract/errors.ts";

import type { RateDecision, RatePolicy } from "./gcra.ts";

export interface RateLimiter {
  /** Takes one request out of the bucket of that name, or refuses and takes nothing. */
  take(name: string, policy: RatePolicy): Promise<RateDecision>;
}

/** Whole seconds, as HTTP wants them; 0 when the request was allowed. */
export const retryAfterSeconds = ({ retry_after_ms }: RateDecision): number => Math.ceil(retry_after_ms / 1000);

/** `limit` completes the sentence "too many requests: …". */
export function tooManyRequests(limit: string, decision: RateDecision, cause?: unknown): ApiError {
  const seconds = retryAfterSeconds(decision);
  return new ApiError("rate_limited", `too many requests: ${limit}; try again in ${seconds} s`, {
    headers: { "Retry-After": String(seconds) },
    cause,
  });
}
