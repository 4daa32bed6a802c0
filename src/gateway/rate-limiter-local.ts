/** Buckets in this process: exact for one gateway, and what the shared forms fall back to. */
import type { Clock } from "#platform/clock.ts";

import { aheadMsOf, decideRate, type RateDecision, type RatePolicy } from "./gcra.ts";
import type { RateLimiter } from "./rate-limiter.ts";

/** Names held at most; a full bucket is the same as none, so those go first. */
const BUCKETS_MAX = 50_000;

export interface LocalRateLimiter extends RateLimiter {
  /** Takes over what the shared limiter decided, so that this one goes on from there when it has to. */
  follow(name: string, policy: RatePolicy, decision: RateDecision): void;
}

export function createLocalRateLimiter(clock: Clock, bucketsMax = BUCKETS_MAX): LocalRateLimiter {
  const fullAt = new Map<string, number>();

  function makeRoom(now: number): void {
    for (const [name, at] of fullAt) if (at <= now) fullAt.delete(name);
    // All of them are in use: the oldest is forgotten, which forgives it some requests.
    for (const name of fullAt.keys()) {
      if (fullAt.size < bucketsMax) return;
      fullAt.delete(name);
    }
  }

  function keep(name: string, fullAtMs: number, now: number): void {
    if (!fullAt.has(name) && fullAt.size >= bucketsMax) makeRoom(now);
    fullAt.set(name, fullAtMs);
  }

  return {
    async take(name, policy) {
      const now = clock.now();
      const { full_at_ms, ...decision } = decideRate(fullAt.get(name), policy, now);
      keep(name, full_at_ms, now);
      return decision;
    },
    follow(name, policy, decision) {
      const now = clock.now();
      keep(name, now + aheadMsOf(decision, policy), now);
    },
  };
}
