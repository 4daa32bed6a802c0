/**
 * What an object of Stripe's says about money, as data; no database, no clock. Events and what the API lists go through
 * the same functions, because both carry the same objects.
 */
import { Type } from "typebox";
import { Value } from "typebox/value";

import { parseTopupId, type TopupId } from "#contract/ids.ts";

import type { TopupState } from "./topups.ts";

/** What we ask Stripe to tell us; docs/operations.md lists them for the webhook's set-up. */
export const HANDLED_EVENT_TYPES = [
  "checkout.session.completed",
  "checkout.session.async_payment_succeeded",
  "checkout.session.async_payment_failed",
  "checkout.session.expired",
  "charge.refunded",
  "charge.dispute.created",
  "charge.dispute.updated",
  "charge.dispute.funds_withdrawn",
  "charge.dispute.funds_reinstated",
  "charge.dispute.closed",
] as const;

/** inquiry: nothing was taken (yet). open and lost: Stripe holds the money. won: it is back, or was never taken. */
export type DisputeState = "inquiry" | "open" | "lost" | "won";

export type Facts =
  | {
      readonly kind: "session";
      readonly session_id: string;
      /** Null when the session names no top-up of ours. */
      readonly topup_id: TopupId | null;
      readonly state: TopupState;
      /** Whose the metadata says it is. */
      readonly customer_id: string | null;
      readonly stripe_customer_id: string | null;
      readonly url: string | null;
      /** Once it is paid; cents, or the smallest unit of that currency. */
      readonly payment: { readonly id: string; readonly amount: number; readonly currency: string } | null;
    }
  | {
      readonly kind: "refund";
      readonly payment_id: string;
      /** From the metadata, which Stripe copies from the payment to its charge. */
      readonly topup_id: TopupId | null;
      /** All refunds of the payment until now. */
      readonly refunded_cents: number;
    }
  | {
      readonly kind: "dispute";
      readonly dispute_id: string;
      readonly payment_id: string;
      readonly amount_cents: number;
      readonly state: DisputeState;
    }
  | { readonly kind: "none"; readonly why: string };

const none = (why: string): Facts => ({ kind: "none", why });

/** Amounts of Stripe have at most twelve digits; ours fit the column. */
const Amount = Type.Integer({ minimum: 0, maximum: 2_147_483_647 });
/** An id, or the object itself where a list was asked to expand it. */
const Reference = Type.Union([Type.String(), Type.Object({ id: Type.String() }), Type.Null()]);
const Metadata = Type.Optional(Type.Union([Type.Record(Type.String(), Type.Unknown()), Type.Null()]));
const Nullable = Type.Optional(Type.Union([Type.String(), Type.Null()]));

const idOf = (reference: string | { id: string } | null | undefined): string | null =>
  typeof reference === "object" ? (reference?.id ?? null) : (reference ?? null);

const textOf = (value: unknown): string | null => (typeof value === "string" ? value : null);

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

/** Throws when an event of a type that we handle does not carry what it must: then somebody has to look. */
export function factsOfEvent({ type, account, data: { object } }: StripeEvent): Facts {
  if (!isHandled(type)) return none("not about top-ups");
  // Events of accounts that are connected to ours; their sessions could name any top-up, and pay somebody else.
  if (account) return none("of a connected account");
  if (type === "charge.refunded") return factsOfCharge(object);
  if (type.startsWith("charge.dispute.")) return factsOfDispute(object);
  return factsOfSession(object, type);
}

const Session = Type.Object({
  id: Type.String(),
  mode: Nullable,
  status: Nullable,
  payment_status: Nullable,
  amount_total: Type.Optional(Type.Union([Type.Integer(), Type.Null()])),
  currency: Nullable,
  client_reference_id: Nullable,
  customer: Type.Optional(Reference),
  payment_intent: Type.Optional(Reference),
  url: Nullable,
  metadata: Metadata,
});

/** The event's type says what the session itself does not: that its delayed payment did not arrive. */
export function factsOfSession(object: unknown, eventType?: string): Facts {
  const session = parsed(Session, "a Checkout session", object);
  if ((session.mode ?? "payment") !== "payment") return none("not a one-time payment");
  const paid = session.payment_status === "paid";
  const { amount_total: amount, currency } = session;
  if (paid && (typeof amount !== "number" || !currency)) throw new Error(`session ${session.id} is paid, but not what`);
  const failed = eventType === "checkout.session.async_payment_failed";
  return {
    kind: "session",
    session_id: session.id,
    topup_id: parseTopupId(textOf(session.metadata?.["topup_id"]) ?? session.client_reference_id ?? ""),
    state: paid ? "paid" : failed ? "failed" : session.status === "expired" ? "expired" : "open",
    customer_id: textOf(session.metadata?.["customer_id"]),
    stripe_customer_id: idOf(session.customer),
    url: session.url ?? null,
    // Stripe's own always name their payment; where none is named, the session is its one payment.
    payment: paid
      ? { id: idOf(session.payment_intent) ?? session.id, amount: amount ?? 0, currency: currency ?? "" }
      : null,
  };
}

const Charge = Type.Object({
  id: Type.String(),
  amount_refunded: Amount,
  payment_intent: Type.Optional(Reference),
  metadata: Metadata,
});

function factsOfCharge(object: unknown): Facts {
  const charge = parsed(Charge, "a charge", object);
  const payment_id = idOf(charge.payment_intent);
  if (payment_id === null) return none("a charge without a payment");
  return {
    kind: "refund",
    payment_id,
    topup_id: parseTopupId(textOf(charge.metadata?.["topup_id"]) ?? ""),
    refunded_cents: charge.amount_refunded,
  };
}

const Dispute = Type.Object({
  id: Type.String(),
  amount: Amount,
  currency: Nullable,
  status: Type.String(),
  payment_intent: Type.Optional(Reference),
  balance_transactions: Type.Optional(Type.Array(Type.Object({ amount: Type.Integer() }))),
});

/** Above every payment: what is clawed back is capped by what was credited. */
const ALL_OF_IT = 2_147_483_647;

export function factsOfDispute(object: unknown): Facts {
  const dispute = parsed(Dispute, "a dispute", object);
  const payment_id = idOf(dispute.payment_intent);
  if (payment_id === null) return none("a dispute without a payment");
  const moved = dispute.balance_transactions?.reduce((sum, { amount }) => sum + amount, 0) ?? 0;
  return {
    kind: "dispute",
    dispute_id: dispute.id,
    payment_id,
    // In another currency than the payment's, so in the bank's: how much of the payment it is, it does not say.
    amount_cents: (dispute.currency ?? "usd") === "usd" ? dispute.amount : ALL_OF_IT,
    state: disputeState(dispute.status, moved < 0),
  };
}

/** `withdrawn`: whether Stripe's own books say that money is gone; they decide where the status alone does not. */
function disputeState(status: string, withdrawn: boolean): DisputeState {
  switch (status) {
    case "won":
    case "warning_closed":
      return "won";
    case "lost":
    // An appeal comes after a loss; the money is gone until it is won.
    case "appeal_needs_response":
    case "appeal_under_review":
      return "lost";
    case "needs_response":
    case "under_review":
      return "open";
    case "warning_needs_response":
    case "warning_under_review":
      return withdrawn ? "open" : "inquiry";
    // "prevented" (refunded before it became a dispute, which shows as a refund), and what Stripe may invent.
    default:
      return withdrawn ? "lost" : "inquiry";
  }
}

function parsed<S extends Type.TSchema>(schema: S, what: string, object: unknown): Type.Static<S> {
  if (Value.Check(schema, object)) return object;
  const [problem] = Value.Errors(schema, object);
  throw new Error(`Stripe sent ${what} that cannot be read: ${problem?.instancePath} ${problem?.message}`);
}
