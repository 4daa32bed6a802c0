/**
 * Rate limiting by the generic cell rate algorithm: a bucket of `burst` requests that refills at `per_second`, kept as
 * one number. Pure: (state, policy, now) → decision. The state is the theoretical arrival time (ms) at which the
 * bucket is full again; undefined is a full one.
 */
export interface RatePolicy {
  readonly per_second: number;
  readonly burst: number;
}

export interface RateDecision {
  readonly allowed: boolean;
  /** The state to keep. */
  readonly full_at_ms: number;
  /** Requests that would pass right now. */
  readonly remaining: number;
  /** 0 when allowed. */
  readonly retry_after_ms: number;
}

export function decideRate(fullAtMs: number | undefined, { per_second, burst }: RatePolicy, now: number): RateDecision {
  const intervalMs = 1000 / per_second;
  const capacityMs = burst * intervalMs;
  const before = Math.max(fullAtMs ?? now, now);
  const after = before + intervalMs;
  const shortMs = after - now - capacityMs;
  // Sums of fractions (1000/3 ms) miss by a rounding error; a microsecond of grace keeps `burst` exact.
  if (shortMs > 0.001) return { allowed: false, full_at_ms: before, remaining: 0, retry_after_ms: shortMs };
  const remaining = Math.floor((capacityMs - (after - now)) / intervalMs + 0.001);
  return { allowed: true, full_at_ms: after, remaining, retry_after_ms: 0 };
}

/** Seconds in which an empty bucket is full again: the window of the `RateLimit-Policy` header. */
export const windowSeconds = ({ per_second, burst }: RatePolicy): number => Math.ceil(burst / per_second);
