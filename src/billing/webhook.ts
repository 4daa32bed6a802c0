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
  if (body.length === 0) throw noEvent();
  const text = textOf(body);
  if (text === null || !secrets.some((secret) => isSigned(text, signature, secret))) throw rejected("signature");
  const age = Math.floor(nowMs / 1000) - Number(timestamp);
  if (age > AGE_MAX_S || age < -AHEAD_MAX_S) throw rejected("timestamp");
  const event = parseEvent(jsonOf(text));
  if (!event) throw noEvent();
  return event;
}

/**
 * One reading of the bytes for signature and content alike, in which nothing is dropped (a byte order mark) or replaced
 * (what is not UTF-8): what is parsed is what was signed. Null where they are no text; Stripe signs none such.
 */
function textOf(body: Buffer): string | null {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(body);
  } catch {
    return null;
  }
}

function isSigned(text: string, signature: string, secret: string): boolean {
  try {
    // The age is checked by the caller, on both sides; 0 leaves it out here.
    return Stripe.webhooks.signature?.verifyHeader(text, signature, secret, 0) ?? false;
  } catch (error) {
    if (error instanceof Stripe.errors.StripeSignatureVerificationError) return false;
    throw error;
  }
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null; // signed and no JSON: refused as no event
  }
}

const noEvent = (): ApiError => new ApiError("webhook_rejected", "expected an event of Stripe's API");

/** The same for everybody who is refused: nothing of what came close. */
const EXPECTED = {
  signature:
    "expected the header Stripe-Signature (t=<epoch seconds>,v1=<hex>), made of exactly this body with this endpoint's secret",
  timestamp: `expected one that is at most ${AGE_MAX_S} s old and at most ${AHEAD_MAX_S} s ahead`,
} as const;

function rejected(what: "signature" | "timestamp"): ApiError {
  return new ApiError("webhook_rejected", `the ${what} of this webhook is not valid: ${EXPECTED[what]}`);
}
