/**
 * Rate limiting by the generic cell rate algorithm: a bucket of `burst` requests that refills at `per_second`, kept as
 * one number. Pure: (state, policy, now) → decision. The state is the time (ms) at which the bucket is full again;
 * undefined is a full one. The same arithmetic stands in rate-limiter-redis.ts and rate-limiter-postgres.ts, where the
 * server's clock is; one suite holds all three to it.
 */
export interface RatePolicy {
  /** May be a fraction: 5 an hour is 5/3600. */
  readonly per_second: number;
  /** At least 1. */
  readonly burst: number;
}

export interface RateDecision {
  readonly allowed: boolean;
  /** Requests that would pass right now. */
  readonly remaining: number;
  /** 0 when allowed. */
  readonly retry_after_ms: number;
}

/** How long a bucket takes to regain one request. */
export const intervalMsOf = ({ per_second }: RatePolicy): number => 1000 / per_second;

/**
 * No policy puts a bucket further ahead than its capacity. One that is further by more than this was left by a slower
 * policy, or by a clock that was set back; it counts as empty but for the request that finds it.
 */
export const AHEAD_SLACK_MS = 100;

/** Sums of fractions (1000/3 ms) miss by a rounding error; a microsecond of grace keeps `burst` exact. */
const ROUNDING_MS = 0.001;

export function decideRate(
  fullAtMs: number | undefined,
  policy: RatePolicy,
  now: number,
): RateDecision & {
  /** The state to keep. Refused: unchanged, so asking in vain costs nothing. */
  readonly full_at_ms: number;
} {
  const intervalMs = intervalMsOf(policy);
  const capacityMs = policy.burst * intervalMs;
  const known = fullAtMs ?? now;
  const before = known > now + capacityMs + AHEAD_SLACK_MS ? now + capacityMs - intervalMs : Math.max(known, now);
  const after = before + intervalMs;
  const allowed = after - now - capacityMs <= ROUNDING_MS;
  const full_at_ms = allowed ? after : before;
  return { ...decisionOf(allowed, full_at_ms - now, policy), full_at_ms };
}

/** What a caller is told. `aheadMs`: from now until the bucket is full, with this request in it where it was allowed. */
export function decisionOf(allowed: boolean, aheadMs: number, policy: RatePolicy): RateDecision {
  const intervalMs = intervalMsOf(policy);
  const roomMs = policy.burst * intervalMs - aheadMs;
  if (!allowed) {
    // A bucket that refuses lacks less than one request, whatever a stale reading of it says.
    const retry_after_ms = Math.min(Math.max(intervalMs - roomMs, ROUNDING_MS), intervalMs + AHEAD_SLACK_MS);
    return { allowed, remaining: 0, retry_after_ms };
  }
  return { allowed, remaining: Math.max(Math.floor(roomMs / intervalMs + ROUNDING_MS), 0), retry_after_ms: 0 };
}

/** How far ahead a bucket is that answered so, to within the one request that `remaining` rounds away. */
export function aheadMsOf({ allowed, remaining, retry_after_ms }: RateDecision, policy: RatePolicy): number {
  const intervalMs = intervalMsOf(policy);
  return (policy.burst - remaining) * intervalMs - (allowed ? 0 : intervalMs - retry_after_ms);
}

/** Seconds in which an empty bucket is full again: the window of the `RateLimit-Policy` header. */
export const windowSeconds = ({ per_second, burst }: RatePolicy): number => Math.ceil(burst / per_second);
