/** Top-up by card: a Checkout session at Stripe, and the pages that Stripe sends the customer back to. */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance } from "fastify";
import { Type } from "typebox";

import { startCheckout } from "#billing/checkout.ts";
import type { Stripe } from "#billing/stripe.ts";
import { ApiError } from "#contract/errors.ts";
import { IDEMPOTENCY_KEY_CHARS_MAX, TOPUP_CENTS_MAX, TOPUP_CENTS_MIN } from "#contract/limits.ts";

import { identityOf } from "../plugins/keys.ts";
import { tooManyRequests } from "../rate-limiter.ts";
import type { RouteParts } from "../route-parts.ts";
import { idempotencyKeyOf } from "./forms.ts";
import { SMALL_BODY_BYTES_MAX } from "./keys.ts";

/** Each begun top-up is a row here and some calls of Stripe's; nobody means to pay more often than this. */
const PER_CUSTOMER = { per_second: 10 / 60, burst: 10 };

const AmountCents = Type.Integer({
  minimum: TOPUP_CENTS_MIN,
  maximum: TOPUP_CENTS_MAX,
  description: "US cents: $5.00 to $10,000.00.",
});

const Topup = Type.Object({
  session_id: Type.String(),
  url: Type.String({ description: "Stripe's page: open it in a browser to pay. The credit follows within seconds." }),
  amount_cents: Type.Integer(),
  amount_usd: Type.Number(),
  customer_id: Type.String(),
});

export function addTopupRoute(bare: FastifyInstance, parts: RouteParts): void {
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();
  const { db, random, stripe, config, keyed, publicUrl, rateLimiter } = parts;

  app.post(
    "/v1/billing/topup",
    {
      onRequest: [...keyed],
      schema: {
        summary: "Top up by card",
        tags: ["billing"],
        body: Type.Object({ amount_cents: AmountCents }),
        headers: Type.Object({
          "idempotency-key": Type.Optional(
            Type.String({
              description:
                "For a day, the same key and amount give the same session, unless that one expired or failed.",
              maxLength: IDEMPOTENCY_KEY_CHARS_MAX,
            }),
          ),
        }),
        response: { 200: Topup },
      },
      bodyLimit: SMALL_BODY_BYTES_MAX,
      // The schema is documentation: a refusal names both bounds, and money is not guessed from text.
      validatorCompiler: () => () => true,
    },
    async (request) => {
      const { customer_id } = identityOf(request);
      const configured = requireStripe(stripe, config.STRIPE_WEBHOOK_SECRET, customer_id);
      const amount_cents = amountOf(request.body);
      const decision = await rateLimiter.take(`top-ups of ${customer_id}`, PER_CUSTOMER);
      if (!decision.allowed) {
        const limit = { name: "top-ups", policy: PER_CUSTOMER };
        throw tooManyRequests("the limit is 10 top-ups a minute for each customer", limit, decision);
      }
      const session = await startCheckout(
        { db, stripe: configured, random },
        {
          customer_id,
          request_id: request.id,
          amount_cents,
          idempotency_key: idempotencyKeyOf(request),
          public_url: publicUrl(request),
        },
      );
      return { ...session, amount_cents, amount_usd: amount_cents / 100, customer_id };
    },
  );
}

/** Without the webhook, a payment would be credited by the next reconciliation only; better not to take it. */
function requireStripe(stripe: Stripe | null, secrets: readonly string[] | undefined, customerId: string): Stripe {
  if (stripe && secrets) return stripe;
  const missing = [stripe ? [] : ["STRIPE_SECRET_KEY"], secrets ? [] : ["STRIPE_WEBHOOK_SECRET"]].flat();
  throw new ApiError(
    "topup_not_configured",
    `top-up by card is not configured on this server: its operator sets ${missing.join(" and ")}, ` +
      `or adds credits with: dream-engine credits grant ${customerId} <usd>`,
  );
}

function amountOf(body: unknown): number {
  const amount = typeof body === "object" && body !== null && "amount_cents" in body ? body.amount_cents : undefined;
  if (
    typeof amount === "number" &&
    Number.isInteger(amount) &&
    amount >= TOPUP_CENTS_MIN &&
    amount <= TOPUP_CENTS_MAX
  ) {
    return amount;
  }
  const got = amount === undefined ? "nothing" : JSON.stringify(amount).slice(0, 60);
  throw new ApiError(
    "invalid_input",
    `amount_cents: expected a whole number from ${TOPUP_CENTS_MIN} ($5.00) to ${TOPUP_CENTS_MAX} ($10,000.00), got ${got}`,
  );
}

const page = (title: string, text: string): string =>
  `<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>${title} · Dream Engine</title></head>\n` +
  `<body>\n<h1>${title}</h1>\n<p>${text}</p>\n</body>\n</html>\n`;

/** Where Stripe's page leads afterwards. Neither page knows, or changes, anything: the webhook credits. */
export function addTopupPages(app: FastifyInstance): void {
  const pages = {
    "/billing/paid": page(
      "Thank you",
      "Your payment was received. The credit appears on your balance as soon as Stripe confirms it, usually within " +
        "seconds; payments by bank transfer take days. You can close this page.",
    ),
    "/billing/cancelled": page(
      "Nothing was paid",
      "You left the payment page. Nothing was charged, and you can try again.",
    ),
  };
  for (const [path, html] of Object.entries(pages)) {
    app.get(path, { schema: { hide: true } }, async (_request, reply) =>
      reply
        .type("text/html; charset=utf-8")
        .header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        .send(html),
    );
  }
}
