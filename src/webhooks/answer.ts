/** From what a receiver answered to what becomes of the delivery. Pure. */
import type { RandomBytes } from "#contract/ids.ts";

import { type MessageType, WEBHOOK_TEST } from "#contract/webhooks.ts";

import type { Next } from "./deliveries.ts";
import { ATTEMPTS_MAX, parseRetryAfter, retryDelayMs } from "./schedule.ts";

export interface Answer {
  readonly status: number;
  readonly retryAfter: string | undefined;
}

/** The receiver says that it wants nothing more, ever. */
export const isGone = (answer: Answer | null): boolean => answer?.status === 410;

/**
 * `failed`: how many attempts have failed if this one did. Any 2xx is success; a redirect is not, because what it leads to
 * is not what the customer named. Of a test one attempt is the answer: its owner waits for it, and asks for another.
 */
export function nextAfter(
  answer: Answer | null,
  { event, failed }: { readonly event: MessageType; readonly failed: number },
  random: RandomBytes,
  nowMs: number,
): Next {
  if (answer !== null && answer.status >= 200 && answer.status < 300) return { state: "delivered" };
  if (isGone(answer)) return { state: "failed", reason: "its receiver answered 410 Gone" };
  if (event === WEBHOOK_TEST) return { state: "failed", reason: "a test is sent once" };
  const retryAfterMs = answer && [429, 503].includes(answer.status) ? parseRetryAfter(answer.retryAfter, nowMs) : null;
  const delayMs = retryDelayMs(failed, random, retryAfterMs);
  if (delayMs === null) return { state: "failed", reason: `given up after ${ATTEMPTS_MAX} attempts` };
  return { state: "pending", delayMs, counts: true };
}

/** Of the answer's body in the log. */
export const EXCERPT_BYTES_MAX = 1024;

/** The body's beginning as text without anything that a terminal or the database would stumble over. */
export function excerptOf(body: Buffer): string {
  const text = body.toString("utf8").replaceAll(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]+/gu, " ");
  // A byte that is no text has become three.
  const cut = Buffer.from(text).subarray(0, EXCERPT_BYTES_MAX).toString("utf8");
  return (cut.length < text.length ? cut.replace(/\uFFFD+$/, "") : cut).trim();
}
