/**
 * Asking for a payment: our row first, then Stripe's customer, then the Checkout session under the row's id as
 * idempotency key. Whatever breaks in between, nothing is charged, and a repetition finds what was done before.
 */
import { ApiError } from "#contract/errors.ts";
import type { RandomBytes } from "#contract/ids.ts";
import { settlesWithin } from "#platform/bounded.ts";
import type { Database } from "#platform/database.ts";

import {
  createOnce,
  describeStripeError,
  isIdempotencyMismatch,
  isMissingAtStripe,
  paymentsUnavailable,
  type Stripe,
} from "./stripe.ts";
import { ensureStripeCustomer, replaceStripeCustomer } from "./stripe-customer.ts";
import { beginTopup, storeSession, type NewTopup, type Topup } from "./topups.ts";

/** What a caller waits for Stripe at most; the client of the API gives up somewhat later. */
const CHECKOUT_TIMEOUT_MS = 25_000;

export interface CheckoutParts {
  readonly db: Database;
  readonly stripe: Stripe;
  readonly random: RandomBytes;
  /** How long a caller waits for Stripe; tests shorten it. */
  readonly timeoutMs?: number;
}

export interface TopupRequest extends NewTopup {
  /** Base URL of this server, where Stripe sends the customer afterwards. */
  readonly public_url: string;
}

/**
 * A page at Stripe where that amount can be paid. The same idempotency key gives the same session.
 * Throws ApiError(payments_unavailable), ApiError(idempotency_mismatch).
 */
export async function startCheckout(
  parts: CheckoutParts,
  request: TopupRequest,
): Promise<{ readonly session_id: string; readonly url: string }> {
  const topup = await beginTopup(parts.db, request, parts.random);
  if (topup.session_id !== null && topup.session_url !== null) {
    return { session_id: topup.session_id, url: topup.session_url };
  }
  const asked = askStripe(parts, topup, request.public_url);
  const { timeoutMs = CHECKOUT_TIMEOUT_MS } = parts;
  // What is under way may end later, under the same idempotency key; a repetition finds it.
  if (!(await settlesWithin(timeoutMs, asked))) {
    throw paymentsUnavailable(new Error(`Stripe took longer than ${timeoutMs} ms`));
  }
  const { id, url } = await asked;
  return { session_id: id, url };
}

async function askStripe(
  { db, stripe }: CheckoutParts,
  topup: Topup,
  publicUrl: string,
): Promise<{ readonly id: string; readonly url: string }> {
  const [customer] = await db.query<{ email: string | null }>(
    `SELECT coalesce(email, signup_email) AS email FROM customers WHERE id = $1`,
    [topup.customer_id],
  );
  const email = customer?.email ?? null;
  const known = await ensureStripeCustomer(db, stripe, topup.customer_id, email, topup.id);
  const session = await createSession(stripe, topup, publicUrl, known, topup.id).catch(async (error: unknown) => {
    if (!isMissingAtStripe(error, "customer")) throw toApiError(error);
    const other = await replaceStripeCustomer(db, stripe, topup.customer_id, email, known, topup.id);
    // Stripe may have kept the refusal under the first key.
    return createSession(stripe, topup, publicUrl, other, `${topup.id}-${other}`).catch((error: unknown) => {
      throw toApiError(error);
    });
  });
  return storeSession(db, topup.id, session);
}

async function createSession(
  stripe: Stripe,
  topup: Topup,
  publicUrl: string,
  customer: string,
  idempotencyKey: string,
): Promise<{ id: string; url: string }> {
  // A second session that nobody pays costs nothing, and should both be paid, the second payment is a recorded problem.
  const { id, url } = await createOnce([idempotencyKey, `${idempotencyKey}-2`], (options) =>
    stripe.checkout.sessions.create(sessionParams(topup, publicUrl, customer), options),
  );
  if (url === null) throw new Error(`Stripe made session ${id} without a URL`);
  return { id, url };
}

function toApiError(error: unknown): ApiError {
  if (!isIdempotencyMismatch(error)) return paymentsUnavailable(error);
  return new ApiError(
    "idempotency_mismatch",
    "this Idempotency-Key was used for another request (or under another base URL); take a new key",
    { cause: describeStripeError(error) },
  );
}

/** The amount is paid as it is: no promotion, tax or other currency may change what is credited. */
function sessionParams(topup: Topup, publicUrl: string, customer: string): Stripe.Checkout.SessionCreateParams {
  const metadata = { topup_id: topup.id, customer_id: topup.customer_id, request_id: topup.request_id };
  return {
    mode: "payment",
    customer,
    client_reference_id: topup.id,
    adaptive_pricing: { enabled: false },
    line_items: [
      {
        quantity: 1,
        price_data: {
          currency: "usd",
          unit_amount: topup.amount_cents,
          product_data: { name: "Dream Engine credits", description: "Prepaid credit for generated frames" },
        },
      },
    ],
    metadata,
    payment_intent_data: { metadata, description: `Dream Engine credits for ${topup.customer_id}` },
    success_url: `${publicUrl}/billing/paid`,
    cancel_url: `${publicUrl}/billing/cancelled`,
  };
}
