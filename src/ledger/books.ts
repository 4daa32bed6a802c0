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
}

/** Ages are by the database's clock. Reads what the partial index of unfinished rollouts holds, and single rows. */
export async function readBooks(sql: Sql): Promise<Books> {
  const [row] = await sql.query<Books>(
    `SELECT open.*,
            (SELECT coalesce(extract(epoch FROM max(checked_at)), 0)::float8 FROM ledger_checks WHERE problems = 0)
              AS verified_at_s,
            coalesce((SELECT problems FROM ledger_checks ORDER BY id DESC LIMIT 1), 0) AS problems,
            (SELECT count(*)::int FROM payments WHERE problem IS NOT NULL) AS payments_with_problem
       FROM (SELECT count(*)::int AS unsettled,
                    coalesce(greatest(0, extract(epoch FROM now() - min(created_at))), 0)::float8 AS oldest_unsettled_s,
                    coalesce(greatest(0, extract(epoch FROM now() - min(deadline_at))), 0)::float8 AS most_overdue_s
               FROM rollouts WHERE status IN ('queued', 'dispatched')) open`,
  );
  if (!row) throw new Error("an aggregate gives one row");
  return row;
}
