/**
 * Buckets by name (a key, an address) behind one port. Three forms: in this process (rate-limiter-local.ts), in Redis
 * and in PostgreSQL, which several gateways share and whose server's clock decides. Losing a bucket costs nothing but a
 * fresh burst, so none of them is durable.
 */
import { ApiError } from "#contract/errors.ts";

import { callerAddress } from "./caller-address.ts";
import { type RateDecision, type RatePolicy, windowSeconds } from "./gcra.ts";

export interface RateLimiter {
  /** Takes one request out of the bucket of that name, or refuses and takes nothing. */
  take(name: string, policy: RatePolicy): Promise<RateDecision>;
}

const ADDRESS = "address ";

/**
 * The name of a bucket of whoever calls from there. Callers choose their addresses, and of IPv6 somebody may have more
 * than there is memory: in this process these have room of their own, so that they push out no key's bucket.
 */
export const addressBucket = (what: string, ip: string): string => `${ADDRESS}${what} ${callerAddress(ip)}`;

export const isAddressBucket = (name: string): boolean => name.startsWith(ADDRESS);

/** Whole seconds, as HTTP wants them; 0 when the request was allowed. */
const retryAfterSeconds = ({ retry_after_ms }: RateDecision): number => Math.ceil(retry_after_ms / 1000);

/** A limit as callers know it, such as "key". */
export interface NamedPolicy {
  readonly name: string;
  readonly policy: RatePolicy;
}

/** draft-ietf-httpapi-ratelimit-headers: q requests in w seconds; r left for the next t seconds. */
export function limitHeaders({ name, policy }: NamedPolicy, decision: RateDecision): Record<string, string> {
  const window = windowSeconds(policy);
  return {
    "RateLimit-Policy": `"${name}";q=${policy.burst};w=${window}`,
    RateLimit: `"${name}";r=${decision.remaining};t=${retryAfterSeconds(decision) || window}`,
  };
}

/** `limit` completes the sentence "too many requests: …". */
export function tooManyRequests(limit: string, by: NamedPolicy, decision: RateDecision, cause?: unknown): ApiError {
  const seconds = retryAfterSeconds(decision);
  return new ApiError("rate_limited", `too many requests: ${limit}; try again in ${seconds} s`, {
    headers: { ...limitHeaders(by, decision), "Retry-After": String(seconds) },
    cause,
  });
}
