/** What moved on each day, by kind of entry: for the operator's daily look. */
import type { Mils } from "#contract/mils.ts";
import type { Sql } from "#platform/database.ts";

const DAY_MS = 86_400_000;

export interface DailyTotal {
  /** "2026-11-22", in UTC. */
  readonly day: string;
  readonly account: "balance" | "debt";
  readonly kind: string;
  readonly entries: bigint;
  /** Signed sum. */
  readonly mils: Mils;
}

/** The last `days` days, the present one included, oldest first. A day a statement, so that each of them stays short. */
export async function dailyTotals(sql: Sql, days: number, nowMs: number): Promise<DailyTotal[]> {
  const today = Math.floor(nowMs / DAY_MS) * DAY_MS;
  const totals: DailyTotal[] = [];
  for (let begin = today - (days - 1) * DAY_MS; begin <= today; begin += DAY_MS) {
    const day = new Date(begin).toISOString();
    const rows = await sql.query<DailyTotal>(
      `SELECT $3::text AS day, account, kind, count(*) AS entries, sum(amount_mils)::bigint AS mils
         FROM ledger_entries WHERE created_at >= $1::timestamptz AND created_at < $2::timestamptz
        GROUP BY account, kind ORDER BY account, kind`,
      [day, new Date(begin + DAY_MS).toISOString(), day.slice(0, 10)],
    );
    totals.push(...rows);
  }
  return totals;
}
