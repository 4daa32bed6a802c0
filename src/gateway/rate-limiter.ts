/** Buckets by name (a key, an address) in this process. Losing them costs nothing but a fresh burst. */
import { ApiError } from "#contract/errors.ts";
import type { Clock } from "#platform/clock.ts";

import { decideRate, type RateDecision, type RatePolicy } from "./gcra.ts";

/** Names held at most; a full bucket is the same as none, so those go first. */
const BUCKETS_MAX = 50_000;

export interface RateLimiter {
  take(name: string, policy: RatePolicy): RateDecision;
}

export function createRateLimiter(clock: Clock, bucketsMax = BUCKETS_MAX): RateLimiter {
  const fullAt = new Map<string, number>();

  function makeRoom(now: number): void {
    for (const [name, at] of fullAt) if (at <= now) fullAt.delete(name);
    // All of them are in use: the oldest is forgotten, which forgives it some requests.
    for (const name of fullAt.keys()) {
      if (fullAt.size < bucketsMax) return;
      fullAt.delete(name);
    }
  }

  return {
    take(name, policy) {
      const now = clock.now();
      const decision = decideRate(fullAt.get(name), policy, now);
      if (!fullAt.has(name) && fullAt.size >= bucketsMax) makeRoom(now);
      fullAt.set(name, decision.full_at_ms);
      return decision;
    },
  };
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
