/** The state of the books in a few figures, cheap enough to read every few seconds; the metrics show them. */
import type { Sql } from "#platform/database.ts";

export interface Books {
  /** Rollouts that are debited and not settled. */
  readonly unsettled: number;
  /** Of the oldest of their debits; 0 when there is none. */
  readonly oldest_unsettled_s: number;
  /** How long ago the earliest deadline among them passed; 0 while none has. */
  readonly most_overdue_s: number;
  /** When a verification last found nothing, in epoch seconds; 0: never. */
  readonly verified_at_s: number;
  /** Disagreements that the last verification found. */
  readonly problems: number;
  readonly payments_with_problem: number;
  /** When our payments were last compared with Stripe's, in epoch seconds; 0: never. */
  readonly reconciled_at_s: number;
  /** What disagreed then, by kind. */
  readonly disagreements: Readonly<Record<string, number>>;
  /** Signed events about our money that could not be read, while Stripe still has them. */
  readonly unread_events: number;
}

/** Ages are by the database's clock. Reads what the partial index of unfinished rollouts holds, and single rows. */
export async function readBooks(sql: Sql): Promise<Books> {
  const [row] = await sql.query<Books>(
    `SELECT open.*,
            (SELECT coalesce(extract(epoch FROM max(checked_at)), 0)::float8 FROM ledger_checks WHERE problems = 0)
              AS verified_at_s,
            coalesce((SELECT problems FROM ledger_checks ORDER BY id DESC LIMIT 1), 0) AS problems,
            (SELECT count(*)::int FROM payments WHERE problem IS NOT NULL) AS payments_with_problem,
            coalesce((SELECT extract(epoch FROM at) FROM stripe_reconciled), 0)::float8 AS reconciled_at_s,
            coalesce((SELECT disagreements FROM stripe_reconciled), '{}') AS disagreements,
            (SELECT count(*)::int FROM stripe_events_unread u
              WHERE first_seen_at > now() - interval '30 days'
                AND NOT EXISTS (SELECT FROM stripe_events e WHERE e.id = u.id)) AS unread_events
       FROM (SELECT count(*)::int AS unsettled,
                    coalesce(greatest(0, extract(epoch FROM now() - min(created_at))), 0)::float8 AS oldest_unsettled_s,
                    coalesce(greatest(0, extract(epoch FROM now() - min(deadline_at))), 0)::float8 AS most_overdue_s
               FROM rollouts WHERE status IN ('queued', 'dispatched')) open`,
  );
  if (!row) throw new Error("an aggregate gives one row");
  return row;
}
