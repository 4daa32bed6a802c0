/**
 * The independent auditor: what the ledger should do, in plain sequential code without a database and without a line of
 * the code that it audits. A list of entries an account and a few maps; slow, obvious, and asked about everything.
 */
import type { Outcome } from "#contract/jobs.ts";

export type Operation =
  | { readonly do: "grant"; readonly customer: number; readonly payment: number; readonly amount: number }
  | {
      readonly do: "accept";
      readonly customer: number;
      readonly key: number;
      readonly k: number;
      readonly actions: number;
      readonly idempotency: number | null;
      readonly payload: number;
    }
  | { readonly do: "dispatch"; readonly rollout: number }
  | { readonly do: "settle"; readonly rollout: number; readonly attempt: number | null; readonly outcome: Outcome }
  | { readonly do: "claw back"; readonly customer: number; readonly payment: number; readonly amount: number }
  | { readonly do: "reinstate"; readonly customer: number; readonly payment: number; readonly amount: number }
  | { readonly do: "adjust"; readonly customer: number; readonly amount: number }
  | { readonly do: "mint"; readonly customer: number }
  | { readonly do: "revoke"; readonly customer: number; readonly key: number }
  | { readonly do: "expire"; readonly customer: number; readonly key: number }
  | { readonly do: "price"; readonly customer: number; readonly mils: number | null }
  /** Stripe tells of a payment; the same with the same `copy` is the same event once more. */
  | {
      readonly do: "event";
      readonly customer: number;
      readonly payment: number;
      readonly says: StripeSays;
      readonly copy: number;
    };

export type StripeSays =
  | { readonly session: "paid" | "expired" | "async failed" }
  | { readonly refunded_cents: number }
  | { readonly refund: number; readonly state: RefundState }
  | { readonly dispute: number; readonly state: DisputeState };
export const DISPUTE_STATES = ["inquiry", "inquiry closed", "open", "lost", "won"] as const;
export type DisputeState = (typeof DISPUTE_STATES)[number];
export const REFUND_STATES = ["pending", "succeeded", "failed"] as const;
export type RefundState = (typeof REFUND_STATES)[number];

/** In cents: what each customer's top-ups are about, and what the refunds and disputes of a payment are about. */
export const TOPUP_CENTS = [5, 20, 9, 30] as const;
export const REFUND_CENTS = [3, 12] as const;
export const DISPUTE_CENTS = [4, 25] as const;
/** The last of them is paid in another currency, and so never credited. */
export const FOREIGN_PAYMENT = TOPUP_CENTS.length - 1;

/** `accepted` and `replayed` name a rollout by its place in the order of acceptance. */
export type Reply =
  | "done"
  | "nothing"
  | "conflict"
  | "revoked"
  | "expired"
  | "too little"
  | "mismatch"
  | { readonly accepted: number }
  | { readonly replayed: number };

/** Everything there is to see of the books; plain data, so that two of them can be compared. */
export interface Snapshot {
  readonly customers: readonly {
    readonly balance: number;
    readonly debt: number;
    /** Oldest first: kind, signed amount, balance afterwards, rollout. */
    readonly balanceEntries: readonly Entry[];
    readonly debtEntries: readonly Entry[];
    readonly keys: readonly { readonly revoked: boolean; readonly expired: boolean }[];
    /** Idempotency keys that are taken, in their order, and the rollouts that they stand for. */
    readonly remembered: readonly (readonly [key: number, rollout: number])[];
    /** By top-up: what was credited of it and taken back. */
    readonly payments: readonly PaymentState[];
    /** How many events about them were taken in. */
    readonly events: number;
  }[];
  readonly rollouts: readonly {
    readonly customer: number;
    readonly status: string;
    readonly attempt: number;
    readonly charge: number;
    readonly refunded: number;
  }[];
}
export interface PaymentState {
  readonly credited: number;
  readonly clawedBack: number;
}
export type Entry = readonly [kind: string, amount: number, after: number, rollout: number | null];

interface Customer {
  balance: Entry[];
  debt: Entry[];
  keys: { revoked: boolean; expired: boolean }[];
  price: number;
  grants: Map<number, number>;
  remembered: Map<number, number>;
  payments: Payment[];
  events: Set<string>;
}

interface Payment {
  paid: boolean;
  /** The most that was ever said in all. */
  refundedCents: number;
  refunds: Map<number, RefundState>;
  disputes: Map<number, DisputeState>;
  credited: number;
  clawedBack: number;
}

interface Rollout {
  customer: number;
  frames: number;
  price: number;
  payload: number;
  status: string;
  attempt: number;
  refunded: number;
}

export interface Model {
  apply(operation: Operation): Reply;
  snapshot(): Snapshot;
  /** One that can go its own way: what would be, had the operation taken effect. */
  clone(): Model;
}

const LIST_PRICE = 5;
const ENDED = ["succeeded", "failed", "cancelled", "expired"];

interface State {
  readonly customers: Customer[];
  readonly rollouts: Rollout[];
}

/** Customers with so many keys each, and nothing else. */
export function createModel(customers: number, keys: number): Model {
  return modelOf({
    customers: Array.from({ length: customers }, () => ({
      balance: [],
      debt: [],
      keys: Array.from({ length: keys }, () => ({ revoked: false, expired: false })),
      price: LIST_PRICE,
      grants: new Map(),
      remembered: new Map(),
      payments: TOPUP_CENTS.map(() => ({
        paid: false,
        refundedCents: 0,
        refunds: new Map(),
        disputes: new Map(),
        credited: 0,
        clawedBack: 0,
      })),
      events: new Set(),
    })),
    rollouts: [],
  });
}

const sumOf = (entries: readonly Entry[]): number => entries.reduce((sum, [, amount]) => sum + amount, 0);

function post(customer: Customer, kind: string, amount: number, rollout: number | null = null): void {
  customer.balance.push([kind, amount, sumOf(customer.balance) + amount, rollout]);
  if (amount <= 0) return;
  // Whoever owes has no balance: what comes in pays the debt first.
  const repaid = Math.min(sumOf(customer.debt), sumOf(customer.balance));
  if (repaid === 0) return;
  customer.balance.push(["clawback", -repaid, sumOf(customer.balance) - repaid, null]);
  owe(customer, -repaid);
}

/** States only ever go forward. */
function advance<S>(order: readonly S[], states: Map<number, S>, which: number, to: S): void {
  const before = states.get(which);
  if (before === undefined || order.indexOf(to) > order.indexOf(before)) states.set(which, to);
}

function owe(customer: Customer, amount: number): void {
  customer.debt.push(["clawback", amount, sumOf(customer.debt) + amount, null]);
}

function clawBack(customer: Customer, amount: number): void {
  const fromBalance = Math.min(sumOf(customer.balance), amount);
  if (fromBalance > 0) post(customer, "clawback", -fromBalance);
  if (amount > fromBalance) owe(customer, amount - fromBalance);
}

function modelOf(state: State): Model {
  const customerOf = (index: number): Customer => {
    const customer = state.customers[index];
    if (!customer) throw new Error(`the model has no customer ${index}`);
    return customer;
  };

  function apply(operation: Operation): Reply {
    switch (operation.do) {
      case "grant": {
        const customer = customerOf(operation.customer);
        const before = customer.grants.get(operation.payment);
        if (before !== undefined) return before === operation.amount ? "nothing" : "conflict";
        customer.grants.set(operation.payment, operation.amount);
        post(customer, "credit", operation.amount);
        return "done";
      }
      case "accept":
        return accept(operation);
      case "dispatch": {
        const rollout = state.rollouts[operation.rollout];
        if (rollout?.status !== "queued") return "nothing";
        rollout.status = "dispatched";
        rollout.attempt += 1;
        return "done";
      }
      case "settle":
        return settle(operation);
      case "claw back":
        clawBack(customerOf(operation.customer), operation.amount);
        return "done";
      case "event":
        return takeEvent(operation);
      case "reinstate":
        post(customerOf(operation.customer), "clawback", operation.amount);
        return "done";
      case "adjust": {
        const customer = customerOf(operation.customer);
        if (sumOf(customer.balance) + operation.amount < 0) return "too little";
        post(customer, "adjustment", operation.amount);
        return "done";
      }
      case "mint":
        customerOf(operation.customer).keys.push({ revoked: false, expired: false });
        return "done";
      case "revoke":
      case "expire": {
        const key = customerOf(operation.customer).keys[operation.key];
        if (!key) return "nothing";
        if (operation.do === "revoke") key.revoked = true;
        else key.expired = true;
        return "done";
      }
      case "price":
        customerOf(operation.customer).price = operation.mils ?? LIST_PRICE;
        return "done";
      default:
        return operation satisfies never;
    }
  }

  function accept(operation: Operation & { do: "accept" }): Reply {
    const customer = customerOf(operation.customer);
    const key = customer.keys[operation.key];
    if (!key) return "nothing";
    if (key.revoked) return "revoked";
    if (key.expired) return "expired";
    const earlier = operation.idempotency === null ? undefined : customer.remembered.get(operation.idempotency);
    if (earlier !== undefined) {
      return state.rollouts[earlier]?.payload === operation.payload ? { replayed: earlier } : "mismatch";
    }
    const frames = operation.k * (operation.actions + 1);
    const charge = frames * customer.price;
    if (sumOf(customer.balance) < charge) return "too little";
    const { price } = customer;
    const { customer: owner, payload } = operation;
    const rollout = { customer: owner, frames, price, payload, status: "queued", attempt: 0, refunded: 0 };
    const index = state.rollouts.push(rollout) - 1;
    post(customer, "debit", 0 - charge, index); // and not −0
    if (operation.idempotency !== null) customer.remembered.set(operation.idempotency, index);
    return { accepted: index };
  }

  function takeEvent(operation: Operation & { do: "event" }): Reply {
    const customer = customerOf(operation.customer);
    const payment = customer.payments[operation.payment];
    const name = JSON.stringify(operation);
    if (!payment || customer.events.has(name)) return "nothing";
    customer.events.add(name);
    const { says } = operation;
    if ("session" in says) payment.paid ||= says.session === "paid";
    else if ("refunded_cents" in says) payment.refundedCents = Math.max(payment.refundedCents, says.refunded_cents);
    else if ("refund" in says) advance(REFUND_STATES, payment.refunds, says.refund, says.state);
    else advance(DISPUTE_STATES, payment.disputes, says.dispute, says.state);

    const paid = (TOPUP_CENTS[operation.payment] ?? 0) * 100;
    if (payment.paid && payment.credited === 0 && operation.payment !== FOREIGN_PAYMENT) {
      payment.credited = paid;
      post(customer, "credit", paid);
    }
    const disputed = [...payment.disputes]
      .filter(([, disputeState]) => disputeState === "open" || disputeState === "lost")
      .reduce((cents, [dispute]) => cents + (DISPUTE_CENTS[dispute] ?? 0), 0);
    let [standing, failed] = [0, 0];
    for (const [refund, refundState] of payment.refunds) {
      const cents = REFUND_CENTS[refund] ?? 0;
      if (refundState === "failed") failed += cents;
      else standing += cents;
    }
    const refunded = Math.max(standing, payment.refundedCents - failed);
    const takenBack = Math.min(payment.credited, (refunded + disputed) * 100);
    if (takenBack > payment.clawedBack) clawBack(customer, takenBack - payment.clawedBack);
    if (takenBack < payment.clawedBack) post(customer, "clawback", payment.clawedBack - takenBack);
    payment.clawedBack = takenBack;
    return "done";
  }

  function settle({ rollout: index, attempt, outcome }: Operation & { do: "settle" }): Reply {
    const rollout = state.rollouts[index];
    if (!rollout || ENDED.includes(rollout.status)) return "nothing";
    if (attempt !== null && attempt !== rollout.attempt) return "nothing";
    if (outcome.kind === "succeeded" && rollout.status === "queued") return "nothing";
    const reported =
      outcome.kind === "succeeded" ? outcome.result.frames : outcome.kind === "expired" ? 0 : outcome.frames_delivered;
    const customer = customerOf(rollout.customer);
    rollout.status = outcome.kind;
    rollout.refunded = (rollout.frames - Math.min(reported, rollout.frames)) * rollout.price;
    if (rollout.refunded > 0) post(customer, "refund", rollout.refunded, index);
    if (outcome.kind === "cancelled" || outcome.kind === "expired") {
      for (const [key, remembered] of customer.remembered) if (remembered === index) customer.remembered.delete(key);
    }
    return "done";
  }

  return {
    apply,
    snapshot: () => ({
      customers: state.customers.map((customer) => ({
        balance: sumOf(customer.balance),
        debt: sumOf(customer.debt),
        balanceEntries: customer.balance,
        debtEntries: customer.debt,
        keys: customer.keys,
        remembered: [...customer.remembered].sort(([a], [b]) => a - b),
        payments: customer.payments.map(({ credited, clawedBack }) => ({ credited, clawedBack })),
        events: customer.events.size,
      })),
      rollouts: state.rollouts.map(({ customer, status, attempt, frames, price, refunded }) => ({
        customer,
        status,
        attempt,
        charge: frames * price,
        refunded,
      })),
    }),
    clone: () => modelOf(structuredClone(state)),
  };
}
