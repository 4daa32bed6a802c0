/** Events as Stripe sends them, of what a history says. The same operation is the same event. */
import { createHash } from "node:crypto";

import type { StripeEvent } from "#billing/events.ts";

import {
  DISPUTE_CENTS,
  type DisputeState,
  FOREIGN_PAYMENT,
  type Operation,
  REFUND_CENTS,
  TOPUP_CENTS,
} from "./auditor-model.ts";

const hash = (text: string): string => createHash("sha256").update(text).digest("hex").slice(0, 32);

export const topupId = (customer: string, payment: number): string => `topup_${hash(`${customer} ${payment}`)}`;
export const paymentId = (customer: string, payment: number): string => `pi_${hash(`${customer} ${payment}`)}`;

const STATUS_OF = {
  inquiry: "warning_needs_response",
  "inquiry closed": "warning_closed",
  open: "needs_response",
  lost: "lost",
  won: "won",
} as const satisfies Record<DisputeState, string>;

export function eventOf(customer: string, operation: Operation & { do: "event" }): StripeEvent {
  const { payment, says } = operation;
  const topup_id = topupId(customer, payment);
  const payment_intent = paymentId(customer, payment);
  const envelope = (type: string, object: object): StripeEvent => ({
    id: `evt_${hash(`${customer} ${JSON.stringify(operation)}`)}`,
    object: "event",
    type,
    created: 1_790_000_000,
    livemode: false,
    data: { object },
  });
  if ("session" in says) {
    const paid = says.session === "paid";
    const type = { paid: "completed", expired: "expired", "async failed": "async_payment_failed" }[says.session];
    return envelope(`checkout.session.${type}`, {
      id: `cs_${topup_id}`,
      mode: "payment",
      status: says.session === "expired" ? "expired" : "complete",
      payment_status: paid ? "paid" : "unpaid",
      amount_total: TOPUP_CENTS[payment] ?? 0,
      currency: payment === FOREIGN_PAYMENT ? "eur" : "usd",
      client_reference_id: topup_id,
      payment_intent: paid ? payment_intent : null,
      url: null,
      metadata: { topup_id, customer_id: customer },
    });
  }
  if ("refunded_cents" in says) {
    const { refunded_cents: amount_refunded } = says;
    return envelope("charge.refunded", { id: "ch_1", amount_refunded, payment_intent, metadata: { topup_id } });
  }
  if ("refund" in says) {
    const type = { pending: "refund.created", succeeded: "charge.refund.updated", failed: "refund.failed" }[says.state];
    return envelope(type, {
      id: `re_${hash(`${payment_intent} ${says.refund}`)}`,
      amount: REFUND_CENTS[says.refund] ?? 0,
      status: says.state,
      payment_intent,
    });
  }
  const { dispute, state } = says;
  return envelope(state === "won" || state === "lost" ? "charge.dispute.closed" : "charge.dispute.created", {
    id: `dp_${hash(`${payment_intent} ${dispute}`)}`,
    amount: DISPUTE_CENTS[dispute] ?? 0,
    currency: "usd",
    status: STATUS_OF[state],
    payment_intent,
  });
}
