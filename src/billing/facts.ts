/**
 * What an object of Stripe's says about money, as data; no database, no clock. Events and what the API lists go through
 * the same functions, because both carry the same objects.
 */
import { Type } from "typebox";
import { Value } from "typebox/value";

import { parseTopupId, type TopupId } from "#contract/ids.ts";

import type { TopupState } from "./topups.ts";

/**
 * inquiry: nothing was taken (yet). inquiry_closed: it ended there, but the bank may still insist. open and lost: Stripe
 * holds the money. won: it is back, or was never taken.
 */
export type DisputeState = "inquiry" | "inquiry_closed" | "open" | "lost" | "won";

/** failed: the bank returned it, or it was cancelled; the money is ours again. */
export type RefundState = "pending" | "succeeded" | "failed";

export type Facts =
  | {
      readonly kind: "session";
      readonly session_id: string;
      /** From the metadata, which only we can write; null when they name no top-up of ours. */
      readonly topup_id: TopupId | null;
      /** From client_reference_id, which on a Payment Link is whatever its visitor says. */
      readonly claimed_topup_id: TopupId | null;
      readonly state: TopupState;
      /** Whose the metadata says it is. */
      readonly customer_id: string | null;
      readonly stripe_customer_id: string | null;
      readonly url: string | null;
      /** Once it is paid; cents, or the smallest unit of that currency. */
      readonly payment: { readonly id: string; readonly amount: number; readonly currency: string } | null;
    }
  | {
      readonly kind: "charge";
      readonly payment_id: string;
      /** From the metadata, which Stripe copies from the payment to its charge. */
      readonly topup_id: TopupId | null;
      /** All refunds of the payment until now. */
      readonly refunded_cents: number;
    }
  | {
      readonly kind: "refund";
      readonly refund_id: string;
      readonly payment_id: string;
      readonly amount_cents: number;
      readonly state: RefundState;
    }
  | {
      readonly kind: "dispute";
      readonly dispute_id: string;
      readonly payment_id: string;
      readonly amount_cents: number;
      readonly state: DisputeState;
    }
  | {
      /** It lacks what we need. Whether that matters depends on whose it is, as far as that can be read. */
      readonly kind: "unreadable";
      readonly why: string;
      readonly payment_id: string | null;
      readonly topup_id: TopupId | null;
      readonly stripe_customer_id: string | null;
    }
  | { readonly kind: "none"; readonly why: string };

export const none = (why: string): Facts => ({ kind: "none", why });

/**
 * The most that a column holds, and above every top-up. Larger amounts (currencies whose unit is small) count as this:
 * what is clawed back is capped by what was credited.
 */
const ALL_OF_IT = 2_147_483_647;
const clamped = (amount: number): number => Math.min(amount, ALL_OF_IT);

const Amount = Type.Integer({ minimum: 0 });
/** An id, or the object itself where a list was asked to expand it. */
const Reference = Type.Union([Type.String(), Type.Object({ id: Type.String() }), Type.Null()]);
const Metadata = Type.Optional(Type.Union([Type.Record(Type.String(), Type.Unknown()), Type.Null()]));
const Nullable = Type.Optional(Type.Union([Type.String(), Type.Null()]));

const idOf = (reference: string | { id: string } | null | undefined): string | null =>
  typeof reference === "object" ? (reference?.id ?? null) : (reference ?? null);

const textOf = (value: unknown): string | null => (typeof value === "string" ? value : null);
const fieldOf = (object: unknown, name: string): unknown =>
  typeof object === "object" && object !== null ? Object.entries(object).find(([key]) => key === name)?.[1] : undefined;
const topupIn = (metadata: unknown): TopupId | null => parseTopupId(textOf(fieldOf(metadata, "topup_id")) ?? "");

/** The payment that a session, charge, refund or dispute names, if that much can be read. */
export function paymentOf(object: unknown): string | null {
  const named = fieldOf(object, "payment_intent");
  return textOf(named) ?? textOf(fieldOf(named, "id"));
}

function unreadable(what: string, object: unknown, why: string): Facts {
  return {
    kind: "unreadable",
    why: `${what} that cannot be read: ${why}`,
    payment_id: paymentOf(object),
    topup_id: topupIn(fieldOf(object, "metadata")),
    stripe_customer_id: textOf(fieldOf(object, "customer")) ?? textOf(fieldOf(fieldOf(object, "customer"), "id")),
  };
}

function firstProblem(schema: Type.TSchema, object: unknown): string {
  const [problem] = Value.Errors(schema, object);
  return `${problem?.instancePath ?? ""} ${problem?.message ?? "has another form"}`.trim();
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
  const what = "a Checkout session";
  if (!Value.Check(Session, object)) return unreadable(what, object, firstProblem(Session, object));
  if ((object.mode ?? "payment") !== "payment") return none("not a one-time payment");
  const paid = object.payment_status === "paid";
  const { amount_total: amount, currency } = object;
  if (paid && (typeof amount !== "number" || !currency)) {
    return unreadable(what, object, `${object.id} is paid, but not what`);
  }
  const failed = eventType === "checkout.session.async_payment_failed";
  return {
    kind: "session",
    session_id: object.id,
    topup_id: topupIn(object.metadata),
    claimed_topup_id: parseTopupId(object.client_reference_id ?? ""),
    state: paid ? "paid" : failed ? "failed" : object.status === "expired" ? "expired" : "open",
    customer_id: textOf(object.metadata?.["customer_id"]),
    stripe_customer_id: idOf(object.customer),
    url: object.url ?? null,
    // Stripe's own always name their payment; where none is named, the session is its one payment.
    payment: paid
      ? { id: idOf(object.payment_intent) ?? object.id, amount: amount ?? 0, currency: currency ?? "" }
      : null,
  };
}

const Charge = Type.Object({
  id: Type.String(),
  amount_refunded: Amount,
  payment_intent: Type.Optional(Reference),
  metadata: Metadata,
});

export function factsOfCharge(object: unknown): Facts {
  if (!Value.Check(Charge, object)) return unreadable("a charge", object, firstProblem(Charge, object));
  const payment_id = idOf(object.payment_intent);
  if (payment_id === null) return none("a charge without a payment");
  return {
    kind: "charge",
    payment_id,
    topup_id: topupIn(object.metadata),
    refunded_cents: clamped(object.amount_refunded),
  };
}

const Refund = Type.Object({
  id: Type.String(),
  amount: Amount,
  status: Nullable,
  payment_intent: Type.Optional(Reference),
});

export function factsOfRefund(object: unknown): Facts {
  if (!Value.Check(Refund, object)) return unreadable("a refund", object, firstProblem(Refund, object));
  const payment_id = idOf(object.payment_intent);
  if (payment_id === null) return none("a refund without a payment");
  const { status } = object;
  return {
    kind: "refund",
    refund_id: object.id,
    payment_id,
    amount_cents: clamped(object.amount),
    // Without one, and while it is under way, Stripe has taken the money from us all the same.
    state: status === "failed" || status === "canceled" ? "failed" : status === "succeeded" ? "succeeded" : "pending",
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

export function factsOfDispute(object: unknown): Facts {
  if (!Value.Check(Dispute, object)) return unreadable("a dispute", object, firstProblem(Dispute, object));
  const payment_id = idOf(object.payment_intent);
  if (payment_id === null) return none("a dispute without a payment");
  const moves = object.balance_transactions ?? [];
  const moved = moves.reduce((sum, { amount }) => sum + amount, 0);
  return {
    kind: "dispute",
    dispute_id: object.id,
    payment_id,
    // In another currency than the payment's, so in the bank's: how much of the payment it is, it does not say.
    amount_cents: (object.currency ?? "usd") === "usd" ? clamped(object.amount) : ALL_OF_IT,
    state: disputeState(object.status, moved < 0, moves.length > 0 && moved >= 0),
  };
}

/** What Stripe's own books say of the money, `withdrawn` or `returned`, decides where the status alone does not. */
function disputeState(status: string, withdrawn: boolean, returned: boolean): DisputeState {
  switch (status) {
    case "won":
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
    case "warning_closed":
      if (withdrawn) return "open";
      return returned ? "won" : "inquiry_closed";
    // "prevented" (refunded before it became a dispute, which shows as a refund), and what Stripe may invent.
    default:
      return withdrawn ? "lost" : "inquiry";
  }
}
