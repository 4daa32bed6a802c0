/** When everything was last compared with Stripe, and what disagreed then; it outlives the scheduler that did it. */
import type { Sql } from "#platform/database.ts";

import { RECONCILE_DAYS_MAX } from "./reconcile.ts";
import type { Disagreement } from "./reconcile-run.ts";

const DAY_MS = 86_400_000;
/** Stripe itself tries a webhook for three days. */
const DAYS_MIN = 3;
/** What the last look may just have missed. */
const OVERLAP_MS = 3_600_000;

export type DisagreementCounts = Readonly<Partial<Record<Disagreement["kind"], number>>>;

export interface Reconciled {
  /** When it began: what came later is for the next one. */
  readonly at: Date;
  readonly disagreements: DisagreementCounts;
}

/** Null: never. */
export async function lastReconciled(sql: Sql): Promise<Reconciled | null> {
  const [row] = await sql.query<Reconciled>(`SELECT at, disagreements FROM stripe_reconciled`);
  return row ?? null;
}

export async function recordReconciled(sql: Sql, { at, disagreements }: Reconciled): Promise<void> {
  await sql.query(
    `INSERT INTO stripe_reconciled (at, disagreements) VALUES ($1, $2)
     ON CONFLICT (only_one) DO UPDATE SET at = excluded.at, disagreements = excluded.disagreements
      WHERE stripe_reconciled.at <= excluded.at`,
    [at, JSON.stringify(disagreements)],
  );
}

/**
 * How far the next look goes back: over everything since the last one that came to its end, and never less than Stripe
 * itself would try. As far as Stripe's lists go while something disagrees, so that it stays in sight until it is gone.
 */
export function daysToCompare(nowMs: number, last: Reconciled | null): number {
  if (!last || Object.keys(last.disagreements).length > 0) return RECONCILE_DAYS_MAX;
  const days = (nowMs - last.at.getTime() + OVERLAP_MS) / DAY_MS;
  return Math.min(Math.max(days, DAYS_MIN), RECONCILE_DAYS_MAX);
}

export function countByKind(disagreements: readonly Disagreement[]): DisagreementCounts {
  const counts: Partial<Record<Disagreement["kind"], number>> = {};
  for (const { kind } of disagreements) counts[kind] = (counts[kind] ?? 0) + 1;
  return counts;
}
