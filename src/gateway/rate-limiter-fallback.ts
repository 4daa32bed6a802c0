/**
 * A shared limiter that may be away, with the one in this process behind it. A limiter is a floor against runaway loops:
 * when its backend does not answer, requests go on under this gateway's own buckets rather than fail. Those follow the
 * shared ones while it answers, so a hiccup is no fresh burst.
 */
import { setImmediate as nextTurn } from "node:timers/promises";

import { settlesWithin } from "#platform/bounded.ts";

import type { RateLimiter } from "./rate-limiter.ts";
import type { LocalRateLimiter } from "./rate-limiter-local.ts";

/** A backend that has been silent for so long is asked once in this time only, so that it does not delay every request. */
const ASK_AGAIN_AFTER_MS = 1_000;

export interface FallbackOptions {
  readonly shared: RateLimiter;
  readonly local: LocalRateLimiter;
  /** How long a request waits for the shared one. */
  readonly limitMs: number;
  /** Null: the shared one is being left alone, because it was silent before. */
  readonly onFallback: (error: Error | null) => void;
}

export function createFallbackRateLimiter({ shared, local, limitMs, onFallback }: FallbackOptions): RateLimiter {
  let silentSince: number | null = null;
  let askAgainAt = 0;

  function noteSilence(askedAt: number): void {
    silentSince ??= askedAt;
    const now = performance.now();
    if (now - silentSince >= ASK_AGAIN_AFTER_MS) askAgainAt = now + ASK_AGAIN_AFTER_MS;
  }

  return {
    async take(name, policy) {
      const now = performance.now();
      if (now < askAgainAt) {
        onFallback(null);
        return local.take(name, policy);
      }
      // While it is silent one request asks for all.
      if (askAgainAt > 0) askAgainAt = now + ASK_AGAIN_AFTER_MS;
      try {
        const decision = await answerWithin(limitMs, shared.take(name, policy));
        silentSince = null;
        askAgainAt = 0;
        local.follow(name, policy, decision);
        return decision;
      } catch (error) {
        noteSilence(now);
        onFallback(error instanceof Error ? error : new Error(String(error)));
        return local.take(name, policy);
      }
    },
  };
}

async function answerWithin<T>(limitMs: number, work: Promise<T>): Promise<T> {
  let answer: { readonly value: T } | undefined;
  const answered = work.then((value) => (answer = { value }));
  if (!(await settlesWithin(limitMs, answered))) {
    // A busy process fires its timers before it reads its sockets: the answer may be waiting there.
    await nextTurn();
  }
  if (answer === undefined) throw new Error(`the rate limiter's backend did not answer within ${limitMs} ms`);
  return answer.value;
}
