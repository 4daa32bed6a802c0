/**
 * What Stripe says about a payment, merged into our rows, and the ledger moved to what the rows then imply. Merging only
 * ever goes one way (paid stays paid, refunds and disputes only advance), so duplicates, any order, two at once and
 * reconciliation all end in the same books.
 *
 * Locks, in this order: top-up, payment, accounts. A caller's transaction holds no account yet.
 */
import type { Sql } from "#platform/database.ts";

import type { DisputeState, Facts, RefundState } from "./facts.ts";
import { lockPayment, lockRefundsOf, type Merged, moveLedger, type Payment } from "./move-ledger.ts";
import type { Topup, TopupState } from "./topups.ts";

type FactsOf<Kind extends Facts["kind"]> = Extract<Facts, { kind: Kind }>;

const ignored = (why: string): Merged => ({ outcome: `ignored: ${why}`, moved: [], problem: null, unreadable: null });

/** `eventId` is what a statement names; null when reconciliation read it from a list. In one transaction with it all. */
export async function mergeFacts(tx: Sql, facts: Facts, eventId: string | null): Promise<Merged> {
  switch (facts.kind) {
    case "session":
      return await mergeSession(tx, facts, eventId);
    case "charge":
      return await mergeCharge(tx, facts, eventId);
    case "refund":
      return await mergeRefund(tx, facts, eventId);
    case "dispute":
      return await mergeDispute(tx, facts, eventId);
    case "unreadable":
      if (!(await mayBeOurs(tx, facts))) return ignored(`${facts.why}, and names nothing of ours`);
      return { outcome: `unreadable: ${facts.why}`, moved: [], problem: null, unreadable: facts.why };
    case "none":
      return ignored(facts.why);
    default:
      return facts satisfies never;
  }
}

/** Other things may be sold through the same account at Stripe. What names nothing at all could be anybody's. */
async function mayBeOurs(
  tx: Sql,
  { payment_id, topup_id, stripe_customer_id }: FactsOf<"unreadable">,
): Promise<boolean> {
  if (topup_id !== null) return true;
  if (payment_id === null && stripe_customer_id === null) return true;
  return (
    (payment_id !== null && (await isKnownPayment(tx, payment_id))) || (await isOurCustomer(tx, stripe_customer_id))
  );
}

async function mergeSession(tx: Sql, facts: FactsOf<"session">, eventId: string | null): Promise<Merged> {
  const named = facts.topup_id ?? facts.claimed_topup_id;
  const found = named === null ? null : await lockTopup(tx, named);
  // A top-up that is only claimed is believed of the session that we asked for, and of no other.
  const claim = found !== null && facts.topup_id === null && found.session_id !== facts.session_id;
  const topup = claim ? null : found;
  const said = topup ? await advanceTopup(tx, topup, facts) : null;
  if (!facts.payment) {
    if (topup) return { outcome: said ?? "nothing new", moved: [], problem: null, unreadable: null };
    if (named === null) return ignored("names no top-up of ours");
    return ignored(claim ? `not the session of ${named}, not paid` : `unknown top-up ${named}, not paid`);
  }
  // Other things may be sold through the same account at Stripe; what our own customer pays is for us.
  if (named === null && !(await isOurCustomer(tx, facts.stripe_customer_id))) return ignored("names no top-up of ours");
  const payment = await lockPayment(tx, facts.payment.id);
  const other = topup ? await otherPaymentOf(tx, topup, payment) : null;
  const problem = problemOf(facts, facts.payment, { topup, claimed: claim ? named : null, other });
  const inUsd = facts.payment.currency === "usd" && facts.payment.amount > 0 && facts.payment.amount <= CENTS_MAX;
  const next = await storePayment(tx, {
    ...payment,
    // A second payment of the same top-up is a problem, and is not linked to it.
    topup_id: payment.topup_id ?? (other === null ? (topup?.id ?? null) : null),
    paid_cents: payment.paid_cents ?? (inUsd ? facts.payment.amount : null),
    problem: payment.resolution === null ? problem : payment.problem,
  });
  return moveLedger(tx, next, { eventId, said });
}

/** Of the column. More than that was not asked for by anybody, and is not kept as an amount to credit. */
const CENTS_MAX = 2_147_483_647;

/** Why that payment must not be credited by itself; null when it is what was asked for. */
function problemOf(
  { topup_id, claimed_topup_id, customer_id }: FactsOf<"session">,
  paid: { readonly amount: number; readonly currency: string },
  { topup, claimed, other }: { topup: Topup | null; claimed: string | null; other: string | null },
): string | null {
  const sum = `${paid.amount} ${paid.currency === "usd" ? "cents" : paid.currency}`;
  const named = topup_id ?? claimed_topup_id;
  if (named === null) return `paid ${sum} without naming a top-up`;
  if (claimed !== null) return `paid ${sum} by a session that is not the one of ${claimed}, which it names`;
  if (!topup) return `paid ${sum} for the unknown top-up ${named}`;
  if (paid.currency !== "usd" || paid.amount !== topup.amount_cents) {
    return `paid ${sum}, the top-up is about ${topup.amount_cents} cents`;
  }
  if (customer_id !== null && customer_id !== topup.customer_id) {
    return `paid ${sum} for ${customer_id}, the top-up is of ${topup.customer_id}`;
  }
  return other === null ? null : `paid ${sum} for ${topup.id}, which ${other} had paid`;
}

async function otherPaymentOf(tx: Sql, topup: Topup, payment: Payment): Promise<string | null> {
  const [other] = await tx.query<{ id: string }>(`SELECT id FROM payments WHERE topup_id = $1 AND id <> $2`, [
    topup.id,
    payment.id,
  ]);
  return other?.id ?? null;
}

async function mergeCharge(
  tx: Sql,
  { payment_id, topup_id, refunded_cents }: FactsOf<"charge">,
  eventId: string | null,
): Promise<Merged> {
  if (topup_id === null && !(await isKnownPayment(tx, payment_id))) return ignored("names no top-up of ours");
  const payment = await lockPayment(tx, payment_id);
  const next = { ...payment, refunded_cents: Math.max(payment.refunded_cents, refunded_cents) };
  return moveLedger(tx, await storePayment(tx, next), { eventId, said: null });
}

/** Later ones win: a refund may fail after it succeeded, and that is the end of it. */
const REFUND_ORDER: readonly RefundState[] = ["pending", "succeeded", "failed"];

async function mergeRefund(
  tx: Sql,
  { refund_id, payment_id, amount_cents, state }: FactsOf<"refund">,
  eventId: string | null,
): Promise<Merged> {
  // A refund does not carry our metadata either; its payment, if it is ours, may be told later and then finds it.
  await lockRefundsOf(tx, payment_id);
  await advance(tx, "payment_refunds", REFUND_ORDER, { id: refund_id, payment_id, amount_cents, state });
  if (!(await isKnownPayment(tx, payment_id))) return ignored("a refund of no payment of ours");
  const payment = await lockPayment(tx, payment_id);
  return moveLedger(tx, payment, { eventId, said: null, returned: "refund failed" });
}

/** Later ones win; a closed inquiry can still become a dispute, a loss can be appealed, a win is the end. */
const DISPUTE_ORDER: readonly DisputeState[] = ["inquiry", "inquiry_closed", "open", "lost", "won"];

async function mergeDispute(
  tx: Sql,
  { payment_id, dispute_id, amount_cents, state }: FactsOf<"dispute">,
  eventId: string | null,
): Promise<Merged> {
  // A dispute does not carry our metadata, so one of a payment that is not ours leaves a row that nothing comes of.
  const payment = await lockPayment(tx, payment_id);
  await advance(tx, "payment_disputes", DISPUTE_ORDER, { id: dispute_id, payment_id, amount_cents, state });
  return moveLedger(tx, payment, { eventId, said: null });
}

/** Stores what is said of a refund or dispute, unless what is known comes later in `order`. Under the lock of its payment. */
async function advance<State extends string>(
  tx: Sql,
  table: "payment_refunds" | "payment_disputes",
  order: readonly State[],
  { id, payment_id, amount_cents, state }: { id: string; payment_id: string; amount_cents: number; state: State },
): Promise<void> {
  const [known] = await tx.query<{ state: State }>(`SELECT state FROM ${table} WHERE id = $1`, [id]);
  if (!known) {
    await tx.query(`INSERT INTO ${table} (id, payment_id, amount_cents, state) VALUES ($1, $2, $3, $4)`, [
      id,
      payment_id,
      amount_cents,
      state,
    ]);
  } else if (order.indexOf(state) > order.indexOf(known.state)) {
    await tx.query(`UPDATE ${table} SET state = $2, amount_cents = $3 WHERE id = $1`, [id, state, amount_cents]);
  }
}

async function lockTopup(tx: Sql, id: string): Promise<Topup | null> {
  const [row] = await tx.query<Topup>(
    `SELECT id, customer_id, request_id, amount_cents, session_id, session_url, state, created_at
       FROM topups WHERE id = $1 FOR UPDATE`,
    [id],
  );
  return row ?? null;
}

const TOPUP_ORDER: readonly TopupState[] = ["open", "expired", "failed", "paid"];

/** What changed, or null. Fills in the session where our process died, or waited too long, before it was stored. */
async function advanceTopup(tx: Sql, topup: Topup, facts: FactsOf<"session">): Promise<string | null> {
  // Stripe may have made two sessions for one top-up (checkout.ts): how the one ends that nobody saw says nothing.
  const another = topup.session_id !== null && topup.session_id !== facts.session_id;
  if (another && facts.state !== "paid") return null;
  const state = TOPUP_ORDER.indexOf(facts.state) > TOPUP_ORDER.indexOf(topup.state) ? facts.state : topup.state;
  if (state === topup.state && topup.session_id !== null) return null;
  await tx.query(
    `UPDATE topups SET state = $2, session_id = coalesce(session_id, $3), session_url = coalesce(session_url, $4)
      WHERE id = $1`,
    [topup.id, state, facts.session_id, facts.url],
  );
  return state === topup.state ? "session found" : `top-up ${state}`;
}

async function storePayment(tx: Sql, payment: Payment): Promise<Payment> {
  await tx.query(
    `UPDATE payments SET topup_id = $2, paid_cents = $3, refunded_cents = $4, problem = $5 WHERE id = $1`,
    [payment.id, payment.topup_id, payment.paid_cents, payment.refunded_cents, payment.problem],
  );
  return payment;
}

async function isOurCustomer(tx: Sql, stripeCustomerId: string | null): Promise<boolean> {
  if (stripeCustomerId === null) return false;
  return (await tx.query(`SELECT id FROM customers WHERE stripe_customer_id = $1`, [stripeCustomerId])).length > 0;
}

async function isKnownPayment(tx: Sql, id: string): Promise<boolean> {
  return (await tx.query(`SELECT id FROM payments WHERE id = $1`, [id])).length > 0;
}
