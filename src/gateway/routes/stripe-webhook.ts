/** Stripe tells of payments here. Its signature over the raw bytes is the only key. */
import type { FastifyInstance } from "fastify";
import { Type } from "typebox";

import { isLiveKey } from "#billing/stripe.ts";
import { type EventParts, takeEvent } from "#billing/take-event.ts";
import { verifyWebhook } from "#billing/webhook.ts";
import { ApiError } from "#contract/errors.ts";

import type { RouteParts } from "../route-parts.ts";

/** Stripe's events are some kilobytes; the largest are far below this. */
const EVENT_BYTES_MAX = 1024 * 1024;

export function addStripeWebhookRoute(app: FastifyInstance, parts: RouteParts): void {
  const { db, log, clock, config, money } = parts;
  const moved: EventParts["moved"] = (kind, amount) => money.moved(kind, amount);

  // A context of its own: here alone, bodies stay the bytes that were signed.
  void app.register(async (raw) => {
    raw.removeAllContentTypeParsers();
    raw.addContentTypeParser(
      "*",
      { parseAs: "buffer", bodyLimit: EVENT_BYTES_MAX },
      async (_request: unknown, body: unknown) => body,
    );

    const schema = {
      summary: "Events of Stripe's",
      description:
        "For Stripe alone: the body is an event as Stripe sent it, signed by the endpoint's secret in the header " +
        "Stripe-Signature (t=<epoch seconds>,v1=<hex>). 2xx after the commit only; after a 5xx Stripe sends it again.",
      tags: ["billing"],
      security: [],
      response: { 200: Type.Object({ received: Type.Literal(true) }) },
    };
    raw.post("/v1/billing/webhook", { schema, bodyLimit: EVENT_BYTES_MAX }, async (request) => {
      const secrets = config.STRIPE_WEBHOOK_SECRET;
      if (secrets === undefined) {
        throw new ApiError(
          "topup_not_configured",
          "this server takes no webhooks: its operator sets STRIPE_WEBHOOK_SECRET",
        );
      }
      const signature = request.headers["stripe-signature"];
      const event = verifyWebhook(
        {
          body: Buffer.isBuffer(request.body) ? request.body : Buffer.alloc(0),
          signature: typeof signature === "string" ? signature : undefined,
        },
        secrets,
        clock.now(),
      );
      const key = config.STRIPE_SECRET_KEY;
      if (key !== undefined && event.livemode !== undefined && event.livemode !== isLiveKey(key)) {
        const line = { event: event.id, type: event.type };
        if (event.livemode) {
          // Real money that nobody here would find again: Stripe keeps telling until somebody puts it right.
          log.error(line, "a live event of Stripe's under a test key is refused");
          throw new ApiError("webhook_rejected", "expected events of Stripe's test mode");
        }
        log.warn(line, "a test event of Stripe's under a live key is ignored");
        return { received: true };
      }
      // Answered after the commit only; anything thrown is a 5xx, after which Stripe sends it again.
      await takeEvent({ db, log, moved }, event);
      return { received: true };
    });
  });
}
