/** When a webhook is tried, tried again, and given up. Pure. */
import type { RandomBytes } from "#contract/ids.ts";

const S = 1000;
const MIN = 60 * S;
const H = 60 * MIN;

/** Before each attempt, counted from the one before (Standard Webhooks' own example): three days in all. */
export const ATTEMPT_DELAYS_MS = [0, 5 * S, 5 * MIN, 30 * MIN, 2 * H, 5 * H, 10 * H, 14 * H, 20 * H, 24 * H] as const;
export const ATTEMPTS_MAX = ATTEMPT_DELAYS_MS.length;

/** Receivers that were down together are not called together again. */
const JITTER = 0.1;
/** The most that a receiver can put off the next attempt by `Retry-After`. */
const RETRY_AFTER_MS_MAX = 24 * H;

/**
 * How long to wait after `failed` attempts in a row; null: given up. `retryAfterMs` is what the receiver asked for, a
 * lower bound.
 */
export function retryDelayMs(failed: number, random: RandomBytes, retryAfterMs: number | null): number | null {
  const delay = ATTEMPT_DELAYS_MS[failed];
  if (delay === undefined) return null;
  const jittered = Math.round(delay * (1 + JITTER * (2 * fraction(random) - 1)));
  return Math.max(jittered, Math.min(retryAfterMs ?? 0, RETRY_AFTER_MS_MAX));
}

/** Uniform in [0, 1). */
const fraction = (random: RandomBytes): number => Buffer.from(random(4)).readUInt32BE() / 2 ** 32;

/** The header of a 429 or 503 in milliseconds from now: seconds, or an HTTP date. Null where it says nothing usable. */
export function parseRetryAfter(header: string | undefined, nowMs: number): number | null {
  if (header === undefined) return null;
  if (/^\d{1,9}$/.test(header)) return Number(header) * S;
  const at = /^[A-Z][a-z]{2}, /.test(header) ? Date.parse(header) : Number.NaN;
  return Number.isNaN(at) ? null : Math.max(at - nowMs, 0);
}
