/**
 * The state behind the stand-in: customers, sessions, payments, charges, refunds and disputes as Stripe keeps them, and the
 * events that tell of each change. The customer's side and the bank's side are functions here; our own side is HTTP
 * (stand-in.ts). Amounts are cents.
 */
import { randomBytes } from "node:crypto";

import type { Charge, Dispute, DisputeStatus, Payment, Refund, Session, StripeEvent, StripeObject } from "./objects.ts";

export interface NewSession {
  readonly amount: number;
  readonly currency: string;
  readonly customer: string | null;
  readonly client_reference_id: string | null;
  readonly metadata: Record<string, string>;
  /** What the payment and its charge carry. */
  readonly payment_metadata: Record<string, string>;
}

export type StripeBooks = ReturnType<typeof createStripeBooks>;

export interface BooksOptions {
  readonly now: () => number;
  readonly live: boolean;
  /** Where the pages for paying are said to be. */
  readonly payUrl: string;
  readonly onEvent: (event: StripeEvent) => void;
}

function find<T>(map: Map<string, T>, id: string, what: string): T {
  const found = map.get(id);
  if (!found) throw new Error(`the stand-in has no ${what} ${id}`);
  return found;
}

export function createStripeBooks({ now, live, payUrl, onEvent }: BooksOptions) {
  const customers = new Map<string, StripeObject>();
  const sessions = new Map<string, Session>();
  const payments = new Map<string, Payment>();
  const charges = new Map<string, Charge>();
  const refunds = new Map<string, Refund>();
  const disputes = new Map<string, Dispute>();
  const events: StripeEvent[] = [];
  const paymentMetadata = new Map<string, Record<string, string>>();

  const base = <T extends string>(prefix: string, object: T) => ({
    id: `${prefix}_${randomBytes(12).toString("hex")}`,
    object,
    created: Math.floor(now() / 1000),
    livemode: live,
  });

  function tell(type: string, object: StripeObject): StripeEvent {
    const event: StripeEvent = {
      ...base("evt", "event" as const),
      type,
      api_version: "2026-10-28.endive",
      pending_webhooks: 1,
      request: { id: null, idempotency_key: null },
      // As it was at that moment: later changes do not reach into events.
      data: { object: structuredClone(object) },
    };
    events.push(event);
    onEvent(event);
    return event;
  }

  const chargeOf = (paymentId: string): Charge =>
    find(charges, find(payments, paymentId, "payment").latest_charge, "charge");

  return {
    customers,
    sessions,
    payments,
    charges,
    refunds,
    disputes,
    events,

    createCustomer(fields: { email: string | null; metadata: Record<string, string> }): StripeObject {
      const customer = { ...base("cus", "customer"), ...fields };
      customers.set(customer.id, customer);
      return customer;
    },

    createSession({ amount, payment_metadata, ...fields }: NewSession): Session {
      const made = base(live ? "cs_live" : "cs_test", "checkout.session");
      const session: Session = {
        ...made,
        ...fields,
        mode: "payment",
        status: "open",
        payment_status: "unpaid",
        amount_total: amount,
        amount_subtotal: amount,
        payment_intent: null,
        expires_at: made.created + 86_400,
        url: `${payUrl}/${made.id}`,
      };
      sessions.set(session.id, session);
      paymentMetadata.set(session.id, payment_metadata);
      return session;
    },

    /** The customer pays; a delayed method (`arrives: "later"`) only promises to. Returns the payment's id. */
    pay(
      sessionId: string,
      { arrives = "now", amount, currency }: { arrives?: "now" | "later"; amount?: number; currency?: string } = {},
    ): string {
      const session = find(sessions, sessionId, "session");
      if (session.status !== "open") throw new Error(`session ${sessionId} is ${session.status}`);
      if (amount !== undefined) session.amount_total = amount;
      if (currency !== undefined) session.currency = currency;
      const metadata = paymentMetadata.get(sessionId) ?? {};
      const id = `pi_${randomBytes(12).toString("hex")}`;
      const charge: Charge = {
        ...base("ch", "charge"),
        amount: session.amount_total,
        amount_refunded: 0,
        refunded: false,
        disputed: false,
        currency: session.currency,
        payment_intent: id,
        metadata,
      };
      charges.set(charge.id, charge);
      const paid = arrives === "now";
      payments.set(id, {
        ...base("pi", "payment_intent"),
        id,
        status: paid ? "succeeded" : "processing",
        amount: session.amount_total,
        amount_received: paid ? session.amount_total : 0,
        currency: session.currency,
        customer: session.customer,
        latest_charge: charge.id,
        metadata,
      });
      Object.assign(session, {
        status: "complete",
        payment_status: paid ? "paid" : "unpaid",
        payment_intent: id,
        url: null,
      });
      tell("checkout.session.completed", session);
      return id;
    },

    /** What a delayed payment comes to. */
    arrive(sessionId: string, how: "succeeded" | "failed"): void {
      const session = find(sessions, sessionId, "session");
      const payment = find(payments, session.payment_intent ?? "", "payment");
      if (payment.status !== "processing") throw new Error(`payment ${payment.id} is ${payment.status}`);
      if (how === "succeeded") {
        Object.assign(payment, { status: "succeeded", amount_received: payment.amount });
        session.payment_status = "paid";
      } else payment.status = "requires_payment_method";
      tell(`checkout.session.async_payment_${how}`, session);
    },

    expire(sessionId: string): Session {
      const session = find(sessions, sessionId, "session");
      if (session.status !== "open") throw new Error(`session ${sessionId} is ${session.status}`);
      Object.assign(session, { status: "expired", url: null });
      tell("checkout.session.expired", session);
      return session;
    },

    /** `status`: a bank transfer's refund is under way for days. */
    refund(paymentId: string, amount?: number, status: "pending" | "succeeded" = "succeeded"): string {
      const charge = chargeOf(paymentId);
      const cents = amount ?? charge.amount - charge.amount_refunded;
      if (cents <= 0 || charge.amount_refunded + cents > charge.amount) throw new Error(`cannot refund ${cents}`);
      charge.amount_refunded += cents;
      charge.refunded = charge.amount_refunded === charge.amount;
      const refund: Refund = {
        ...base("re", "refund"),
        amount: cents,
        currency: charge.currency,
        charge: charge.id,
        payment_intent: paymentId,
        status,
      };
      refunds.set(refund.id, refund);
      tell("refund.created", refund);
      tell("charge.refunded", charge);
      return refund.id;
    },

    /** The bank returns a refund, or it is cancelled before it went out: the money is ours again. */
    failRefund(refundId: string, status: "failed" | "canceled" = "failed"): void {
      const refund = find(refunds, refundId, "refund");
      refund.status = status;
      const charge = chargeOf(refund.payment_intent);
      charge.amount_refunded -= refund.amount;
      charge.refunded = false;
      tell("charge.refund.updated", refund);
      tell(status === "failed" ? "refund.failed" : "refund.updated", refund);
    },

    /** An inquiry (`warning_…`) takes no money; a dispute does at once. */
    dispute(
      paymentId: string,
      { amount, status = "needs_response" }: { amount?: number; status?: DisputeStatus } = {},
    ): string {
      const charge = chargeOf(paymentId);
      charge.disputed = true;
      const dispute: Dispute = {
        ...base("du", "dispute"),
        amount: amount ?? charge.amount,
        currency: charge.currency,
        charge: charge.id,
        payment_intent: paymentId,
        status,
        reason: "fraudulent",
        balance_transactions: [],
      };
      if (!status.startsWith("warning_")) withdraw(dispute, -1);
      disputes.set(dispute.id, dispute);
      tell("charge.dispute.created", dispute);
      if (!status.startsWith("warning_")) tell("charge.dispute.funds_withdrawn", dispute);
      return dispute.id;
    },

    /** An inquiry becomes a dispute. */
    escalateDispute(disputeId: string): void {
      const dispute = find(disputes, disputeId, "dispute");
      dispute.status = "needs_response";
      withdraw(dispute, -1);
      tell("charge.dispute.updated", dispute);
      tell("charge.dispute.funds_withdrawn", dispute);
    },

    closeDispute(disputeId: string, status: "won" | "lost" | "warning_closed"): void {
      const dispute = find(disputes, disputeId, "dispute");
      dispute.status = status;
      if (status === "won") withdraw(dispute, 1);
      tell("charge.dispute.closed", dispute);
      if (status === "won") tell("charge.dispute.funds_reinstated", dispute);
    },
  };

  function withdraw(dispute: Dispute, sign: 1 | -1): void {
    const amount = sign * dispute.amount;
    dispute.balance_transactions.push({ ...base("txn", "balance_transaction" as const), amount });
  }
}
