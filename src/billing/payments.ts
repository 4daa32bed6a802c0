/**
 * What Stripe says about a payment, merged into our rows, and the ledger moved to what the rows then imply. Merging only
 * ever goes one way (paid stays paid, refunds only grow, a dispute only advances), so duplicates, any order, two at once
 * and reconciliation all end in the same books.
 *
 * Locks, in this order: top-up, payment, accounts. A caller's transaction holds no account yet.
 */
import { type Mils, mils, usdText } from "#contract/mils.ts";
import { clawBack, reinstate } from "#ledger/clawback.ts";
import { credit } from "#ledger/ledger.ts";
import type { Sql } from "#platform/database.ts";

import type { DisputeState, Facts } from "./events.ts";
import type { Topup, TopupState } from "./topups.ts";

const MILS_PER_CENT = 100;

/** A payment's reinstatement counts as a clawback, too; amounts are above zero. */
export interface Moved {
  readonly kind: "credit" | "clawback";
  readonly amount: Mils;
}

export interface Merged {
  /** For stripe_events and the log: "credited 2500 cents to cus_…", "nothing new", "ignored: …". */
  readonly outcome: string;
  readonly moved: readonly Moved[];
  /** Why money that Stripe holds is not credited; null where all is well. */
  readonly problem: string | null;
}

interface Payment {
  readonly id: string;
  readonly topup_id: string | null;
  readonly paid_cents: number | null;
  readonly refunded_cents: number;
  readonly credited_mils: Mils;
  readonly clawed_back_mils: Mils;
  readonly problem: string | null;
  readonly resolution: string | null;
}

const ignored = (why: string): Merged => ({ outcome: `ignored: ${why}`, moved: [], problem: null });

/** `eventId` is what a statement names; null when reconciliation read it from a list. In one transaction with it all. */
export async function mergeFacts(tx: Sql, facts: Facts, eventId: string | null): Promise<Merged> {
  if (facts.kind === "session") return await mergeSession(tx, facts, eventId);
  if (facts.kind === "refund") return await mergeRefund(tx, facts, eventId);
  if (facts.kind === "dispute") return await mergeDispute(tx, facts, eventId);
  return ignored(facts.why);
}

type SessionFacts = Extract<Facts, { kind: "session" }>;

async function mergeSession(tx: Sql, facts: SessionFacts, eventId: string | null): Promise<Merged> {
  const topup = facts.topup_id === null ? null : await lockTopup(tx, facts.topup_id);
  const said = topup ? await advanceTopup(tx, topup, facts) : null;
  if (!facts.payment) {
    if (topup) return { outcome: said ?? "nothing new", moved: [], problem: null };
    return ignored(facts.topup_id === null ? "names no top-up of ours" : `unknown top-up ${facts.topup_id}, not paid`);
  }
  // Other things may be sold through the same account at Stripe; what our own customer pays is for us.
  if (facts.topup_id === null && !(await isOurCustomer(tx, facts.stripe_customer_id))) {
    return ignored("names no top-up of ours");
  }
  const payment = await lockPayment(tx, facts.payment.id);
  const problem = payment.resolution === null ? await problemOf(tx, facts, topup, payment) : payment.problem;
  const inUsd = facts.payment.currency === "usd" && facts.payment.amount > 0;
  const next = await storePayment(tx, {
    ...payment,
    topup_id: payment.topup_id ?? (await freeTopup(tx, topup, payment)),
    paid_cents: payment.paid_cents ?? (inUsd ? facts.payment.amount : null),
    problem,
  });
  return moveLedger(tx, next, eventId, said);
}

/** Why that payment must not be credited by itself; null when it is what was asked for. */
async function problemOf(
  tx: Sql,
  { payment: paid, topup_id, customer_id }: SessionFacts,
  topup: Topup | null,
  payment: Payment,
): Promise<string | null> {
  if (!paid) return null;
  const sum = `${paid.amount} ${paid.currency === "usd" ? "cents" : paid.currency}`;
  if (topup_id === null) return `paid ${sum} without naming a top-up`;
  if (!topup) return `paid ${sum} for the unknown top-up ${topup_id}`;
  if (paid.currency !== "usd" || paid.amount !== topup.amount_cents) {
    return `paid ${sum}, the top-up is about ${topup.amount_cents} cents`;
  }
  if (customer_id !== null && customer_id !== topup.customer_id) {
    return `paid ${sum} for ${customer_id}, the top-up is of ${topup.customer_id}`;
  }
  const [other] = await tx.query<{ id: string }>(`SELECT id FROM payments WHERE topup_id = $1 AND id <> $2`, [
    topup.id,
    payment.id,
  ]);
  return other ? `paid ${sum} for ${topup.id}, which ${other.id} had paid` : null;
}

/** A second payment of the same top-up is a problem, and is not linked to it. */
async function freeTopup(tx: Sql, topup: Topup | null, payment: Payment): Promise<string | null> {
  if (!topup) return null;
  const [taken] = await tx.query(`SELECT id FROM payments WHERE topup_id = $1 AND id <> $2`, [topup.id, payment.id]);
  return taken ? null : topup.id;
}

async function mergeRefund(
  tx: Sql,
  { payment_id, topup_id, refunded_cents }: Extract<Facts, { kind: "refund" }>,
  eventId: string | null,
): Promise<Merged> {
  if (topup_id === null && !(await isKnownPayment(tx, payment_id))) return ignored("names no top-up of ours");
  const payment = await lockPayment(tx, payment_id);
  const next = { ...payment, refunded_cents: Math.max(payment.refunded_cents, refunded_cents) };
  return moveLedger(tx, await storePayment(tx, next), eventId, null);
}

/** Later ones win; a loss can still be appealed, a win is the end. */
const DISPUTE_ORDER: readonly DisputeState[] = ["inquiry", "open", "lost", "won"];

async function mergeDispute(
  tx: Sql,
  { payment_id, dispute_id, amount_cents, state }: Extract<Facts, { kind: "dispute" }>,
  eventId: string | null,
): Promise<Merged> {
  // A dispute does not carry our metadata, so one of a payment that is not ours leaves a row that nothing comes of.
  const payment = await lockPayment(tx, payment_id);
  const [known] = await tx.query<{ state: DisputeState }>(`SELECT state FROM payment_disputes WHERE id = $1`, [
    dispute_id,
  ]);
  if (!known) {
    await tx.query(`INSERT INTO payment_disputes (id, payment_id, amount_cents, state) VALUES ($1, $2, $3, $4)`, [
      dispute_id,
      payment_id,
      amount_cents,
      state,
    ]);
  } else if (DISPUTE_ORDER.indexOf(state) > DISPUTE_ORDER.indexOf(known.state)) {
    await tx.query(`UPDATE payment_disputes SET state = $2, amount_cents = $3 WHERE id = $1`, [
      dispute_id,
      state,
      amount_cents,
    ]);
  }
  return moveLedger(tx, payment, eventId, null);
}

/** The one place where a payment moves money: credited once it may be, then clawed back as far as it is taken back. */
export async function moveLedger(
  tx: Sql,
  payment: Payment,
  eventId: string | null,
  said: string | null,
): Promise<Merged> {
  const moved: Moved[] = [];
  const outcome: string[] = said === null ? [] : [said];
  const customer_id = await ownerOf(tx, payment);
  let credited = payment.credited_mils;
  // A problem that an operator resolved without crediting stays uncredited.
  const due = payment.paid_cents !== null && payment.problem === null && payment.resolution === null;
  if (credited === 0n && due && customer_id !== null) {
    credited = mils((payment.paid_cents ?? 0) * MILS_PER_CENT);
    await credit(tx, { customer_id, amount: credited, reference: payment.id, detail: `top-up · $${usd(credited)}` });
    moved.push({ kind: "credit", amount: credited });
    outcome.push(`credited ${usd(credited)} to ${customer_id}`);
  }
  const { target, why } = await takenBack(tx, payment, credited);
  const change = target - payment.clawed_back_mils;
  if (change !== 0n && customer_id !== null) {
    const amount = mils(change > 0n ? change : -change);
    const entry = { customer_id, amount, reference: payment.id };
    if (change > 0n) await clawBack(tx, { ...entry, detail: `${why} · $${usd(amount)}` });
    else await reinstate(tx, { ...entry, detail: `dispute won · $${usd(amount)}` });
    moved.push({ kind: "clawback", amount });
    outcome.push(`${change > 0n ? "clawed back" : "gave back"} ${usd(amount)}`);
  }
  if (moved.length > 0) {
    await tx.query(
      `UPDATE payments SET credited_mils = $2, clawed_back_mils = $3,
              credited_by_event = CASE WHEN credited_mils = 0 THEN $4 ELSE credited_by_event END
        WHERE id = $1`,
      [payment.id, credited, target, eventId],
    );
  }
  if (payment.problem !== null) outcome.push(`not credited: ${payment.problem}`);
  return { outcome: outcome.join(", ") || "nothing new", moved, problem: payment.problem };
}

/** Whole cents, as people write them. */
const usd = (amount: Mils): string => usdText(amount).slice(0, -2);

/** Refunds and disputes of one payment may overlap; more than was credited is never taken back. */
async function takenBack(tx: Sql, payment: Payment, credited: Mils): Promise<{ target: Mils; why: string }> {
  const [row] = await tx.query<{ cents: bigint }>(
    `SELECT coalesce(sum(amount_cents), 0)::bigint AS cents FROM payment_disputes
      WHERE payment_id = $1 AND state IN ('open', 'lost')`,
    [payment.id],
  );
  const disputed = row?.cents ?? 0n;
  const sum = (BigInt(payment.refunded_cents) + disputed) * BigInt(MILS_PER_CENT);
  const why = [payment.refunded_cents > 0 && "refunded", disputed > 0n && "disputed"].filter(Boolean).join(" and ");
  return { target: sum < credited ? mils(sum) : credited, why: `payment ${why}` };
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
async function advanceTopup(tx: Sql, topup: Topup, facts: SessionFacts): Promise<string | null> {
  const state = TOPUP_ORDER.indexOf(facts.state) > TOPUP_ORDER.indexOf(topup.state) ? facts.state : topup.state;
  if (state === topup.state && topup.session_id !== null) return null;
  await tx.query(
    `UPDATE topups SET state = $2, session_id = coalesce(session_id, $3), session_url = coalesce(session_url, $4)
      WHERE id = $1`,
    [topup.id, state, facts.session_id, facts.url],
  );
  return state === topup.state ? "session found" : `top-up ${state}`;
}

export async function lockPayment(tx: Sql, id: string): Promise<Payment> {
  await tx.query(`INSERT INTO payments (id) VALUES ($1) ON CONFLICT DO NOTHING`, [id]);
  const [row] = await tx.query<Payment>(
    `SELECT id, topup_id, paid_cents, refunded_cents, credited_mils, clawed_back_mils, problem, resolution
       FROM payments WHERE id = $1 FOR UPDATE`,
    [id],
  );
  if (!row) throw new Error(`payment ${id} neither made nor found`);
  return row;
}

async function storePayment(tx: Sql, payment: Payment): Promise<Payment> {
  await tx.query(
    `UPDATE payments SET topup_id = $2, paid_cents = $3, refunded_cents = $4, problem = $5 WHERE id = $1`,
    [payment.id, payment.topup_id, payment.paid_cents, payment.refunded_cents, payment.problem],
  );
  return payment;
}

async function ownerOf(tx: Sql, { topup_id }: Payment): Promise<string | null> {
  if (topup_id === null) return null;
  const [row] = await tx.query<{ customer_id: string }>(`SELECT customer_id FROM topups WHERE id = $1`, [topup_id]);
  return row?.customer_id ?? null;
}

async function isOurCustomer(tx: Sql, stripeCustomerId: string | null): Promise<boolean> {
  if (stripeCustomerId === null) return false;
  return (await tx.query(`SELECT id FROM customers WHERE stripe_customer_id = $1`, [stripeCustomerId])).length > 0;
}

async function isKnownPayment(tx: Sql, id: string): Promise<boolean> {
  return (await tx.query(`SELECT id FROM payments WHERE id = $1`, [id])).length > 0;
}
