/** Whether a request really is Stripe's, now, for this mode; what it says is for events.ts. */
import { ApiError } from "#contract/errors.ts";

import { parseEvent, type StripeEvent } from "./events.ts";
import { Stripe } from "./stripe.ts";

/** A captured request must not be of use for long. Stripe signs each of its tries anew. */
const AGE_MAX_S = 300;
/** Clocks differ; a signature from further ahead would stay valid for longer than its age allows. */
const AHEAD_MAX_S = 60;

export interface SignedBody {
  readonly body: Buffer;
  /** The header `Stripe-Signature`: t=<epoch seconds>,v1=<hex>[,v1=…]. */
  readonly signature: string | undefined;
}

/**
 * The event, when any of the secrets signed exactly these bytes a short time ago.
 * Throws ApiError(webhook_rejected), which says no more than whether signature or timestamp was wrong.
 */
export function verifyWebhook({ body, signature }: SignedBody, secrets: readonly string[], nowMs: number): StripeEvent {
  const timestamps = (signature ?? "").split(",").filter((part) => part.startsWith("t="));
  const timestamp = /^t=(\d{1,12})$/.exec(timestamps[0] ?? "")?.[1];
  // One and no more, or it would be open which of them was signed.
  if (signature === undefined || timestamp === undefined || timestamps.length !== 1) throw rejected("signature");
  if (!secrets.some((secret) => isSigned(body, signature, secret))) throw rejected("signature");
  const age = Math.floor(nowMs / 1000) - Number(timestamp);
  if (age > AGE_MAX_S || age < -AHEAD_MAX_S) throw rejected("timestamp");
  const event = parseEvent(jsonOf(body));
  if (!event) throw new ApiError("webhook_rejected", "expected an event of Stripe's API");
  return event;
}

function isSigned(body: Buffer, signature: string, secret: string): boolean {
  try {
    // The age is checked by the caller, on both sides; 0 leaves it out here.
    return Stripe.webhooks.signature?.verifyHeader(body, signature, secret, 0) ?? false;
  } catch (error) {
    if (error instanceof Stripe.errors.StripeSignatureVerificationError) return false;
    throw error;
  }
}

function jsonOf(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString("utf8"));
  } catch {
    return null; // signed and no JSON: refused as no event
  }
}

function rejected(what: "signature" | "timestamp"): ApiError {
  return new ApiError("webhook_rejected", `the ${what} of this webhook is not valid`);
}
