/** Stripe's objects, as far as the stand-in keeps them. Amounts are cents, times epoch seconds. */
export interface StripeObject {
  readonly id: string;
  readonly object: string;
  readonly created: number;
  [field: string]: unknown;
}

export interface Session extends StripeObject {
  status: "open" | "complete" | "expired";
  payment_status: "paid" | "unpaid";
  amount_total: number;
  currency: string;
  payment_intent: string | null;
  customer: string | null;
  metadata: Record<string, string>;
  url: string | null;
}

export interface Payment extends StripeObject {
  status: "processing" | "succeeded" | "requires_payment_method";
  amount: number;
  amount_received: number;
  currency: string;
  latest_charge: string;
  metadata: Record<string, string>;
}

export interface Charge extends StripeObject {
  amount: number;
  amount_refunded: number;
  refunded: boolean;
  disputed: boolean;
  currency: string;
  payment_intent: string;
  metadata: Record<string, string>;
}

export interface Refund extends StripeObject {
  amount: number;
  payment_intent: string;
  status: "succeeded" | "pending" | "failed" | "canceled";
}

export type DisputeStatus =
  | "warning_needs_response"
  | "warning_under_review"
  | "warning_closed"
  | "needs_response"
  | "under_review"
  | "won"
  | "lost"
  | "prevented";

export interface Dispute extends StripeObject {
  amount: number;
  currency: string;
  payment_intent: string;
  status: DisputeStatus;
  balance_transactions: { id: string; object: "balance_transaction"; amount: number }[];
}

export interface StripeEvent extends StripeObject {
  readonly object: "event";
  readonly type: string;
  readonly livemode: boolean;
  readonly data: { readonly object: StripeObject };
}
