/** The client of Stripe's API, and what we say of its failures. */
import { Stripe } from "stripe";

import { ApiError } from "#contract/errors.ts";
import type { Config } from "#platform/config.ts";
import { withoutSecrets } from "#platform/log.ts";

export { Stripe };

export type StripeConfig = Pick<Config, "STRIPE_SECRET_KEY" | "STRIPE_API_BASE">;

/** One attempt; the client makes up to three, all under one idempotency key. */
const ATTEMPT_TIMEOUT_MS = 8_000;
const RETRIES = 2;

/** Null where Stripe is not configured. Opens no connection yet. */
export function createStripe({ STRIPE_SECRET_KEY, STRIPE_API_BASE }: StripeConfig): Stripe | null {
  if (STRIPE_SECRET_KEY === undefined) return null;
  return new Stripe(STRIPE_SECRET_KEY, {
    maxNetworkRetries: RETRIES,
    timeout: ATTEMPT_TIMEOUT_MS,
    telemetry: false,
    appInfo: { name: "dream-engine" },
    ...(STRIPE_API_BASE === undefined ? {} : addressOf(STRIPE_API_BASE)),
  });
}

function addressOf(base: string): { host: string; port: number; protocol: "http" | "https" } {
  const { hostname, port, protocol } = new URL(base);
  const scheme = protocol === "http:" ? "http" : "https";
  return { host: hostname, port: port === "" ? (scheme === "http" ? 80 : 443) : Number(port), protocol: scheme };
}

/** Whether that key moves real money; a webhook of the other mode is not about this database's customers. */
export function isLiveKey(secretKey: string): boolean {
  return secretKey.startsWith("sk_live_") || secretKey.startsWith("rk_live_");
}

/** For callers: nothing of Stripe's answer but that there was none; the log gets what helps an operator. */
export function paymentsUnavailable(error: unknown): ApiError {
  return new ApiError(
    "payments_unavailable",
    "the payment provider cannot be reached now; nothing was charged, try again",
    { cause: describeStripeError(error) },
  );
}

/** Type, code, status and request id of a failed call: a StripeError itself holds headers, parameters and the raw answer. */
export function describeStripeError(error: unknown): unknown {
  if (!(error instanceof Stripe.errors.StripeError)) return error;
  const { type, code, statusCode, requestId, message } = error;
  const facts = [type, code, statusCode && `status ${statusCode}`, requestId].filter(Boolean).join(", ");
  return new Error(withoutSecrets(`Stripe: ${message} (${facts})`));
}

/** Whether Stripe says that a parameter names something that it does not have. */
export function isMissingAtStripe(error: unknown, param?: string): boolean {
  return (
    error instanceof Stripe.errors.StripeInvalidRequestError &&
    error.code === "resource_missing" &&
    (param === undefined || error.param === param)
  );
}

export function isIdempotencyMismatch(error: unknown): boolean {
  return error instanceof Stripe.errors.StripeIdempotencyError && error.code !== "idempotency_key_in_use";
}

/**
 * A creation under an idempotency key, and where that key is of no use any more, once under another one. Stripe keeps what
 * it answered for a day, a 5xx too, and refuses a key whose parameters have changed. The first attempt may have made
 * something; so only for what may be there twice without harm.
 */
export async function createOnce<T>(
  keys: readonly [first: string, second: string],
  create: (options: { readonly idempotencyKey: string }) => Promise<T>,
): Promise<T> {
  const [first, second] = keys;
  try {
    return await create({ idempotencyKey: first });
  } catch (error) {
    if (!isIdempotencyMismatch(error) && !isServerError(error)) throw error;
    return await create({ idempotencyKey: second });
  }
}

const isServerError = (error: unknown): boolean =>
  error instanceof Stripe.errors.StripeError && (error.statusCode ?? 0) >= 500;
