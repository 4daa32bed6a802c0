/** Our side of a reconciliation: what the rows say, many at once. */
import type { Mils } from "#contract/mils.ts";
import type { Sql } from "#platform/database.ts";

import type { DisputeState, Facts, RefundState } from "./facts.ts";
import type { TopupState } from "./topups.ts";

/** How long after a refund its bank may still return it, with room. */
const REFUND_MAY_FAIL_DAYS = 40;

export interface KnownPayment {
  readonly id: string;
  /** Without refunds that failed. */
  readonly refunded_cents: bigint;
  readonly credited_mils: Mils;
  /** By the refund's id. */
  readonly refunds: Readonly<Record<string, RefundState>>;
  /** By the dispute's id. */
  readonly disputes: Readonly<Record<string, DisputeState>>;
}

/** Of those ids, the payments that we have a row of. */
export async function knownPayments(sql: Sql, ids: readonly string[]): Promise<Map<string, KnownPayment>> {
  const rows = await sql.query<KnownPayment>(
    `SELECT p.id, refunded_cents(p.id, p.refunded_cents) AS refunded_cents, p.credited_mils,
            coalesce((SELECT jsonb_object_agg(r.id, r.state) FROM payment_refunds r WHERE r.payment_id = p.id), '{}') AS refunds,
            coalesce((SELECT jsonb_object_agg(d.id, d.state) FROM payment_disputes d WHERE d.payment_id = p.id), '{}') AS disputes
       FROM payments p WHERE p.id = ANY ($1)`,
    [ids],
  );
  return new Map(rows.map((row) => [row.id, row]));
}

/** Payments of ours whose refunds are recent enough to fail, or of which not every refund is known. */
export async function refundedPayments(sql: Sql): Promise<string[]> {
  const rows = await sql.query<{ id: string }>(
    `SELECT DISTINCT p.id FROM payment_refunds r JOIN payments p ON p.id = r.payment_id
      WHERE p.credited_mils > 0 AND r.state <> 'failed' AND r.first_seen_at > now() - $1 * interval '1 day'
     UNION
     SELECT p.id FROM payments p
      WHERE p.credited_mils > 0 AND p.refunded_cents > 0 AND p.refunded_cents > (SELECT coalesce(sum(r.amount_cents), 0) FROM payment_refunds r
                                                         WHERE r.payment_id = p.id)`,
    [REFUND_MAY_FAIL_DAYS],
  );
  return rows.map(({ id }) => id);
}

/** Payments that were credited for top-ups since then. */
export function creditedSince(sql: Sql, since: Date): Promise<Pick<KnownPayment, "id" | "credited_mils">[]> {
  return sql.query<Pick<KnownPayment, "id" | "credited_mils">>(
    `SELECT p.id, p.credited_mils
       FROM payments p JOIN topups t ON t.id = p.topup_id
      WHERE p.credited_mils > 0 AND t.created_at >= $1 ORDER BY t.created_at`,
    [since],
  );
}

/** Of those ids, the events that were not taken in. */
export async function unseenEvents(sql: Sql, ids: readonly string[]): Promise<string[]> {
  const rows = await sql.query<{ id: string }>(
    `SELECT id FROM unnest($1::text[]) AS listed (id) WHERE NOT EXISTS (SELECT FROM stripe_events e WHERE e.id = listed.id)`,
    [ids],
  );
  return rows.map(({ id }) => id);
}

/** Signed events that no version of the program has read yet, while Stripe still has them. */
export function unreadEvents(sql: Sql, days: number): Promise<{ id: string; type: string; why: string }[]> {
  return sql.query(
    `SELECT u.id, u.type, u.why FROM stripe_events_unread u
      WHERE first_seen_at > now() - $1 * interval '1 day' AND NOT EXISTS (SELECT FROM stripe_events e WHERE e.id = u.id)
      ORDER BY first_seen_at`,
    [days],
  );
}

const topupNamed = ({ topup_id, claimed_topup_id }: SessionFacts): string | null => topup_id ?? claimed_topup_id;
type SessionFacts = Extract<Facts, { kind: "session" }>;

/** Of those sessions, the ones that say something which our rows do not show yet. Other products' are left out at once. */
export async function needsMerge(sql: Sql, facts: readonly Facts[]): Promise<Facts[]> {
  const sessions = facts.filter((one) => one.kind === "session");
  const topups = await sql.query<{ id: string; state: TopupState; session_id: string | null }>(
    `SELECT id, state, session_id FROM topups WHERE id = ANY ($1)`,
    [sessions.flatMap((one) => topupNamed(one) ?? [])],
  );
  const payments = await sql.query<{ id: string }>(
    `SELECT id FROM payments WHERE id = ANY ($1) AND (credited_mils > 0 OR problem IS NOT NULL OR resolution IS NOT NULL)`,
    [sessions.flatMap(({ payment }) => payment?.id ?? [])],
  );
  const customers = await sql.query<{ id: string }>(
    `SELECT stripe_customer_id AS id FROM customers WHERE stripe_customer_id = ANY ($1)`,
    [sessions.flatMap(({ stripe_customer_id }) => stripe_customer_id ?? [])],
  );
  const ours = new Set<string | null>(customers.map(({ id }) => id));
  const topupOf = new Map(topups.map((row) => [row.id, row]));
  const decided = new Set(payments.map(({ id }) => id));
  return sessions.filter((session) => {
    const named = topupNamed(session);
    const { payment, state, session_id, stripe_customer_id } = session;
    if (payment) return !decided.has(payment.id) && (named !== null || ours.has(stripe_customer_id));
    const topup = named === null ? undefined : topupOf.get(named);
    if (!topup) return false;
    if (topup.session_id === null) return session.topup_id !== null;
    return topup.session_id === session_id && topup.state === "open" && state !== "open";
  });
}

export function openDisputes(sql: Sql): Promise<{ id: string }[]> {
  return sql.query(
    `SELECT d.id FROM payment_disputes d JOIN payments p ON p.id = d.payment_id
      WHERE d.state IN ('inquiry', 'open') AND p.topup_id IS NOT NULL`,
  );
}

export function unresolvedProblems(sql: Sql): Promise<{ id: string; problem: string }[]> {
  return sql.query(`SELECT id, problem FROM payments WHERE problem IS NOT NULL ORDER BY first_seen_at`);
}

export function withoutSession(sql: Sql, before: Date): Promise<{ id: string; created_at: Date }[]> {
  return sql.query(
    `SELECT id, created_at FROM topups
      WHERE session_id IS NULL AND state = 'open' AND created_at < $1 ORDER BY created_at`,
    [before],
  );
}

/** A repetition under the same idempotency key may still give it a session, and a payment then opens it again. */
export async function closeWithoutSession(sql: Sql, id: string): Promise<void> {
  await sql.query(`UPDATE topups SET state = 'failed' WHERE id = $1 AND session_id IS NULL AND state = 'open'`, [id]);
}
