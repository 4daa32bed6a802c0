/**
 * Our top-ups beside Stripe's own lists. What a lost webhook missed is repaired by the functions that webhooks use; what
 * cannot be repaired, because somebody has to decide, is reported until it is gone. Runs at any time, twice at once too.
 */
import { mils, usdText } from "#contract/mils.ts";

import { HANDLED_EVENT_TYPES, parseEvent } from "./events.ts";
import { type Facts, factsOfDispute, factsOfRefund, factsOfSession, paymentOf } from "./facts.ts";
import { mergeFacts } from "./payments.ts";
import {
  closeWithoutSession,
  creditedSince,
  type KnownPayment,
  knownPayments,
  needsMerge,
  openDisputes,
  refundedPayments,
  unreadEvents,
  unresolvedProblems,
  unseenEvents,
  withoutSession,
} from "./reconcile-rows.ts";
import { createRun, type ReconcileParts, type Reconciliation, type Run } from "./reconcile-run.ts";
import { isMissingAtStripe, type Stripe } from "./stripe.ts";
import { takeEventIn } from "./take-event.ts";

const DAY_MS = 86_400_000;
/** Stripe keeps its events for so long. */
export const RECONCILE_DAYS_MAX = 30;
/** What Stripe lists at once, at most. */
const PAGE = 100;
/** After this, nobody waits any more for the answer in which Stripe would have told of the session. */
const SESSION_OVERDUE_MS = 3_600_000;

/** Rejects when Stripe or the database cannot be reached; what was repaired until then stays repaired. */
export async function reconcile(
  parts: ReconcileParts,
  { days, dryRun = false }: { days: number; dryRun?: boolean },
): Promise<Reconciliation> {
  const since = new Date(parts.clock.now() - days * DAY_MS);
  const run = createRun(parts, since, dryRun);
  await replayEvents(run);
  const paid = await compareSessions(run);
  await compareRefunds(run);
  await compareDisputes(run);
  await compareCredits(run, paid);
  await closeTopupsWithoutSession(run);
  for (const { id, problem } of await unresolvedProblems(parts.db)) run.disagree("not_credited", id, problem);
  for (const { id, type, why } of await unreadEvents(parts.db, RECONCILE_DAYS_MAX)) {
    run.disagree("unreadable", id, `${type}: ${why}`);
  }
  return run.report();
}

const subjectOf = (facts: Facts, otherwise: string): string => {
  if (facts.kind === "session") return facts.payment?.id ?? facts.topup_id ?? facts.session_id;
  return facts.kind === "none" ? otherwise : (facts.payment_id ?? otherwise);
};

async function replayEvents(run: Run): Promise<void> {
  const { stripe, db, looked_at, created } = run;
  const list = stripe.events.list({ types: [...HANDLED_EVENT_TYPES], created, limit: PAGE });
  for await (const page of pagesOf(list)) {
    run.checkpoint();
    looked_at.events += page.length;
    const unseen = new Set(
      await unseenEvents(
        db,
        page.map(({ id }) => id),
      ),
    );
    for (const listed of page.filter(({ id }) => unseen.has(id))) {
      const event = parseEvent(listed);
      if (!event) {
        run.disagree("unreadable", listed.id, "Stripe lists it, and it is no event");
        continue;
      }
      run.missed();
      const object: unknown = event.data.object;
      const id = typeof object === "object" && object !== null && "id" in object ? String(object.id) : event.id;
      await run.apply(paymentOf(object) ?? id, (tx) => takeEventIn(tx, event), event.id);
    }
  }
}

/** Gives the payments that Stripe says are paid. */
async function compareSessions(run: Run): Promise<Set<string>> {
  const paid = new Set<string>();
  const list = run.stripe.checkout.sessions.list({ created: run.created, limit: PAGE });
  for await (const page of pagesOf(list)) {
    run.checkpoint();
    run.looked_at.sessions += page.length;
    const facts = page.map((session) => factsOfSession(session));
    await applyUnreadable(run, page, facts);
    for (const one of await needsMerge(run.db, facts)) {
      await run.apply(subjectOf(one, ""), (tx) => mergeFacts(tx, one, null));
    }
    const payments = facts.flatMap((one) => (one.kind === "session" && one.payment ? [one.payment] : []));
    const known = await knownPayments(
      run.db,
      payments.map(({ id }) => id),
    );
    for (const { id, amount } of payments) {
      paid.add(id);
      compareAmount(run, known.get(id), amount);
    }
  }
  return paid;
}

/** Those that cannot be read are named, where they may be about our money. */
async function applyUnreadable(run: Run, page: readonly { id: string }[], facts: readonly Facts[]): Promise<void> {
  for (const [index, one] of facts.entries()) {
    if (one.kind === "unreadable") await run.apply(page[index]?.id ?? "", (tx) => mergeFacts(tx, one, null));
  }
}

function compareAmount(run: Run, known: Pick<KnownPayment, "id" | "credited_mils"> | undefined, cents: number): void {
  if (!known || known.credited_mils === 0n || known.credited_mils === BigInt(cents) * 100n) return;
  const ours = usdText(known.credited_mils);
  run.disagree("amount_differs", known.id, `we credited $${ours}, Stripe received $${usdText(mils(cents * 100))}`);
}

/** Each refund that Stripe lists, and all of those payments whose refunds may have failed since. */
async function compareRefunds(run: Run): Promise<void> {
  const refunded = new Set<string>(await refundedPayments(run.db));
  for await (const page of pagesOf(run.stripe.refunds.list({ created: run.created, limit: PAGE }))) {
    run.checkpoint();
    run.looked_at.refunds += page.length;
    for (const refund of page) refunded.add(paymentOf(refund) ?? "");
  }
  for (const payment of (await knownPayments(run.db, [...refunded])).values()) {
    run.checkpoint();
    const known = await orMissing(compareRefundsOf(run, payment).then(() => true));
    if (known) continue;
    run.disagree("unknown_to_stripe", payment.id, "we count refunds of it, and Stripe does not know this payment");
  }
}

async function compareRefundsOf(run: Run, payment: KnownPayment): Promise<void> {
  let total = 0n;
  let repaired = false;
  const list = run.stripe.refunds.list({ payment_intent: payment.id, limit: PAGE });
  for await (const page of pagesOf(list)) {
    const facts = page.map(factsOfRefund);
    await applyUnreadable(run, page, facts);
    for (const one of facts) {
      if (one.kind !== "refund") continue;
      if (one.state !== "failed") total += BigInt(one.amount_cents);
      const known = payment.refunds[one.refund_id];
      if (known === one.state || known === "failed") continue;
      repaired = true;
      await run.apply(payment.id, (tx) => mergeFacts(tx, one, null));
    }
  }
  // After a repair the sum is another one; the next look compares it.
  if (repaired || total === payment.refunded_cents) return;
  const [ours, theirs] = [payment.refunded_cents, total].map((cents) => usdText(mils(cents * 100n)));
  run.disagree("refund_differs", payment.id, `we count $${ours} as refunded, Stripe $${theirs}`);
}

async function compareDisputes(run: Run): Promise<void> {
  const ours = new Set((await openDisputes(run.db)).map(({ id }) => id));
  const compare = async (page: readonly Stripe.Dispute[]): Promise<void> => {
    const read = page.map(factsOfDispute);
    await applyUnreadable(run, page, read);
    const facts = read.filter((one) => one.kind === "dispute");
    const known = await knownPayments(
      run.db,
      facts.map(({ payment_id }) => payment_id),
    );
    for (const one of facts.filter(({ payment_id }) => known.has(payment_id))) {
      ours.delete(one.dispute_id);
      const state = known.get(one.payment_id)?.disputes[one.dispute_id];
      if (state === one.state) continue;
      if (state === "won") {
        run.disagree("dispute_differs", one.payment_id, `${one.dispute_id} was won, and Stripe now says ${one.state}`);
      } else await run.apply(one.payment_id, (tx) => mergeFacts(tx, one, null));
    }
  };
  for await (const page of pagesOf(run.stripe.disputes.list({ created: run.created, limit: PAGE }))) {
    run.checkpoint();
    run.looked_at.disputes += page.length;
    await compare(page);
  }
  // Disputes take months; those that are open here are asked for by name.
  for (const id of ours) {
    run.checkpoint();
    run.looked_at.disputes += 1;
    const dispute = await orMissing(run.stripe.disputes.retrieve(id));
    if (dispute) await compare([dispute]);
    else run.disagree("unknown_to_stripe", id, "Stripe does not know this dispute");
  }
}

/** What we credited and Stripe's sessions did not show: asked for by name. */
async function compareCredits(run: Run, paid: ReadonlySet<string>): Promise<void> {
  const credited = await creditedSince(run.db, run.since);
  run.looked_at.credits = credited.length;
  for (const payment of credited.filter(({ id }) => !paid.has(id))) {
    run.checkpoint();
    const known = await orMissing(run.stripe.paymentIntents.retrieve(payment.id));
    if (known) compareAmount(run, payment, known.amount_received);
    else {
      const sum = usdText(payment.credited_mils);
      run.disagree(
        "unknown_to_stripe",
        payment.id,
        `we credited $${sum} for it, and Stripe does not know this payment`,
      );
    }
  }
}

async function closeTopupsWithoutSession(run: Run): Promise<void> {
  const overdue = new Date(run.clock.now() - SESSION_OVERDUE_MS);
  for (const { id, created_at } of await withoutSession(run.db, overdue)) {
    if (created_at < run.since) {
      const at = created_at.toISOString();
      run.disagree("no_session", id, `asked for at ${at} and never answered; older than what was compared`);
      continue;
    }
    // Stripe's list does not have it either, or compareSessions would have filled it in.
    if (!run.dryRun) await closeWithoutSession(run.db, id);
    run.repairedBy(`${id}: Stripe made no session for it, closed as failed`);
  }
}

async function orMissing<T>(call: Promise<T>): Promise<T | null> {
  try {
    return await call;
  } catch (error) {
    if (isMissingAtStripe(error)) return null;
    throw error;
  }
}

/** Stripe's lists, a page at a time, however the items come. */
async function* pagesOf<T>(list: AsyncIterable<T>): AsyncGenerator<T[]> {
  let page: T[] = [];
  for await (const item of list) {
    page.push(item);
    if (page.length < PAGE) continue;
    yield page;
    page = [];
  }
  if (page.length > 0) yield page;
}
