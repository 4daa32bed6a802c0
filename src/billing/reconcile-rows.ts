/** Our side of a reconciliation: what the rows say, many at once. */
import type { Mils } from "#contract/mils.ts";
import type { Sql } from "#platform/database.ts";

import type { DisputeState, Facts } from "./events.ts";
import type { TopupState } from "./topups.ts";

export interface KnownPayment {
  readonly id: string;
  readonly refunded_cents: number;
  readonly credited_mils: Mils;
  /** By the dispute's id. */
  readonly disputes: Readonly<Record<string, DisputeState>>;
}

/** Of those ids, the payments that we have a row of. */
export async function knownPayments(sql: Sql, ids: readonly string[]): Promise<Map<string, KnownPayment>> {
  const rows = await sql.query<KnownPayment>(
    `SELECT p.id, p.refunded_cents, p.credited_mils,
            coalesce((SELECT jsonb_object_agg(d.id, d.state) FROM payment_disputes d WHERE d.payment_id = p.id), '{}') AS disputes
       FROM payments p WHERE p.id = ANY ($1)`,
    [ids],
  );
  return new Map(rows.map((row) => [row.id, row]));
}

/** Payments that were credited for top-ups since then. */
export function creditedSince(sql: Sql, since: Date): Promise<KnownPayment[]> {
  return sql.query<KnownPayment>(
    `SELECT p.id, p.refunded_cents, p.credited_mils, '{}'::jsonb AS disputes
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

/** Of those sessions, the ones that say something which our rows do not show yet. */
export async function needsMerge(sql: Sql, facts: readonly Facts[]): Promise<Facts[]> {
  const sessions = facts.filter((one) => one.kind === "session");
  const topups = await sql.query<{ id: string; state: TopupState; session_id: string | null }>(
    `SELECT id, state, session_id FROM topups WHERE id = ANY ($1)`,
    [sessions.flatMap(({ topup_id }) => topup_id ?? [])],
  );
  const payments = await sql.query<{ id: string }>(
    `SELECT id FROM payments WHERE id = ANY ($1) AND (credited_mils > 0 OR problem IS NOT NULL OR resolution IS NOT NULL)`,
    [sessions.flatMap(({ payment }) => payment?.id ?? [])],
  );
  const topupOf = new Map(topups.map((row) => [row.id, row]));
  const decided = new Set(payments.map(({ id }) => id));
  return sessions.filter(({ topup_id, state, payment }) => {
    if (payment) return !decided.has(payment.id);
    const topup = topup_id === null ? undefined : topupOf.get(topup_id);
    return topup !== undefined && (topup.session_id === null || (topup.state === "open" && state !== "open"));
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
