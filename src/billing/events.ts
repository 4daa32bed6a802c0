/** Stripe's events: what must be there before one is believed to be an event, and what it is about. */
import { Type } from "typebox";
import { Value } from "typebox/value";

import { type Facts, factsOfCharge, factsOfDispute, factsOfRefund, factsOfSession, none } from "./facts.ts";

/** What we ask Stripe to tell us; docs/operations.md lists them for the webhook's set-up. */
export const HANDLED_EVENT_TYPES = [
  "checkout.session.completed",
  "checkout.session.async_payment_succeeded",
  "checkout.session.async_payment_failed",
  "checkout.session.expired",
  "charge.refunded",
  // Older accounts get a refund's changes under this name, newer ones under the three below it; some get both.
  "charge.refund.updated",
  "refund.created",
  "refund.updated",
  "refund.failed",
  "charge.dispute.created",
  "charge.dispute.updated",
  "charge.dispute.funds_withdrawn",
  "charge.dispute.funds_reinstated",
  "charge.dispute.closed",
] as const;

const Nullable = Type.Optional(Type.Union([Type.String(), Type.Null()]));

/** Once it is signed, an event needs no more than what we read of it: other senders than Stripe itself leave much out. */
const EventBody = Type.Object({
  id: Type.String({ minLength: 1, maxLength: 255 }),
  object: Type.Optional(Type.Literal("event")),
  type: Type.String({ maxLength: 255 }),
  /** Epoch seconds. */
  created: Type.Optional(Type.Integer({ minimum: 0 })),
  /** Absent: of the mode that our key is of. */
  livemode: Type.Optional(Type.Boolean()),
  account: Nullable,
  data: Type.Object({ object: Type.Unknown() }),
});
export type StripeEvent = Type.Static<typeof EventBody>;

/** Null when it is no event of Stripe's API. */
export function parseEvent(body: unknown): StripeEvent | null {
  return Value.Check(EventBody, body) ? body : null;
}

const isHandled = (type: string): boolean => (HANDLED_EVENT_TYPES as readonly string[]).includes(type);

export function factsOfEvent({ type, account, data: { object } }: StripeEvent): Facts {
  if (!isHandled(type)) return none("not about top-ups");
  // Events of accounts that are connected to ours; their sessions could name any top-up, and pay somebody else.
  if (account) return none("of a connected account");
  if (type === "charge.refunded") return factsOfCharge(object);
  if (type === "charge.refund.updated" || type.startsWith("refund.")) return factsOfRefund(object);
  if (type.startsWith("charge.dispute.")) return factsOfDispute(object);
  return factsOfSession(object, type);
}
