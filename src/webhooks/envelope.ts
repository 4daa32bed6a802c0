/** A webhook as its customer sees it: in answers of the API, and as what a test of it says. */
import { type Static, Type } from "typebox";

import { epochS } from "#contract/epoch.ts";
import { Nullable } from "#contract/nullable.ts";
import { WEBHOOK_EVENTS, type WebhookEvent } from "#contract/webhooks.ts";

import type { Endpoint } from "./endpoints.ts";

export const SubscribedEvent = Type.Unsafe<WebhookEvent>(
  Type.Union(WEBHOOK_EVENTS.map((event) => Type.Literal(event))),
);

export const WebhookEnvelope = Type.Object(
  {
    id: Type.String({ examples: ["endpoint_0123456789abcdef0123456789abcdef"] }),
    object: Type.Literal("webhook"),
    url: Type.String(),
    events: Type.Array(SubscribedEvent),
    description: Nullable(Type.String()),
    enabled: Type.Boolean(),
    disabled_at: Nullable(Type.Integer({ description: "Epoch seconds." })),
    disabled_reason: Nullable(Type.String({ examples: ["its receiver answered 410 Gone"] })),
    created: Type.Integer({ description: "Epoch seconds." }),
  },
  { description: "A webhook" },
);
export type WebhookEnvelope = Static<typeof WebhookEnvelope>;

export function webhookEnvelope(endpoint: Endpoint): WebhookEnvelope {
  return {
    id: endpoint.id,
    object: "webhook",
    url: endpoint.url,
    events: [...endpoint.events],
    description: endpoint.description,
    enabled: endpoint.disabled_at === null,
    disabled_at: epochS(endpoint.disabled_at),
    disabled_reason: endpoint.disabled_reason,
    created: epochS(endpoint.created_at),
  };
}
