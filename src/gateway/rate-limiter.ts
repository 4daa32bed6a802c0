/** Buckets by name (a key, an address) in this process. Losing them costs nothing but a fresh burst. */
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
