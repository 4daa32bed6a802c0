/** Buckets in this process: exact for one gateway, and what the shared forms fall back to. */
import type { Clock } from "#platform/clock.ts";

import { aheadMsOf, decideRate, type RateDecision, type RatePolicy } from "./gcra.ts";
import { isAddressBucket, type RateLimiter } from "./rate-limiter.ts";

/** Names held at most: of callers' addresses, and as many of everything else. */
const BUCKETS_MAX = 50_000;
/** Looking through all of them takes a millisecond, so not for every new name. */
const SWEEP_EVERY_MS = 1_000;
/** A share of them, because a Map finds its first name more slowly the more were deleted before it. */
const FORGOTTEN_AT_ONCE = 0.01;

export interface LocalRateLimiter extends RateLimiter {
  /** Takes over what the shared limiter decided, so that this one goes on from there when it has to. */
  follow(name: string, policy: RatePolicy, decision: RateDecision): void;
}

export function createLocalRateLimiter(clock: Clock, bucketsMax = BUCKETS_MAX): LocalRateLimiter {
  const [addresses, others] = [createBuckets(bucketsMax), createBuckets(bucketsMax)];
  const bucketsOf = (name: string): Buckets => (isAddressBucket(name) ? addresses : others);

  return {
    async take(name, policy) {
      const now = clock.now();
      const buckets = bucketsOf(name);
      const { full_at_ms, ...decision } = decideRate(buckets.get(name), policy, now);
      buckets.keep(name, full_at_ms, now);
      return decision;
    },
    follow(name, policy, decision) {
      const now = clock.now();
      bucketsOf(name).keep(name, now + aheadMsOf(decision, policy), now);
    },
  };
}

interface Buckets {
  /** When it is full again (ms); undefined is a full one. */
  get(name: string): number | undefined;
  keep(name: string, fullAtMs: number, now: number): void;
}

function createBuckets(max: number): Buckets {
  /** In the order of their last use. */
  const fullAt = new Map<string, number>();
  let sweptAt = Number.NEGATIVE_INFINITY;

  function makeRoom(now: number): void {
    // A full bucket is the same as none, so those go first. `<`: a clock may be set back.
    if (now - sweptAt >= SWEEP_EVERY_MS || now < sweptAt) {
      sweptAt = now;
      for (const [name, at] of fullAt) if (at <= now) fullAt.delete(name);
    }
    if (fullAt.size < max) return;
    // All of them are in use: those that were not for the longest are forgotten, which forgives them some requests.
    for (const name of fullAt.keys()) {
      fullAt.delete(name);
      if (fullAt.size <= max * (1 - FORGOTTEN_AT_ONCE)) return;
    }
  }

  return {
    get: (name) => fullAt.get(name),
    keep(name, fullAtMs, now) {
      if (!fullAt.delete(name) && fullAt.size >= max) makeRoom(now);
      fullAt.set(name, fullAtMs);
    },
  };
}
