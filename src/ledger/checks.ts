/** What verifications of the whole ledger found, for whoever asks when it was last known to be right. */
import type { Sql } from "#platform/database.ts";

const EXAMPLES_MAX = 10;

export async function recordCheck(sql: Sql, problems: readonly string[]): Promise<void> {
  await sql.query("INSERT INTO ledger_checks (problems, examples) VALUES ($1, $2)", [
    problems.length,
    JSON.stringify(problems.slice(0, EXAMPLES_MAX)),
  ]);
}

/** How long ago the last verification ended, whatever it found, by the database's clock; null before the first. */
export async function lastCheckAgeMs(sql: Sql): Promise<number | null> {
  const [row] = await sql.query<{ age_ms: number | null }>(
    "SELECT (extract(epoch FROM now() - max(checked_at)) * 1000)::float8 AS age_ms FROM ledger_checks",
  );
  return row?.age_ms ?? null;
}

/** Some of what the last verification found, in words; none where it found nothing. */
export async function readCheckExamples(sql: Sql): Promise<readonly string[]> {
  const [row] = await sql.query<{ examples: readonly string[] }>(
    "SELECT examples FROM ledger_checks ORDER BY id DESC LIMIT 1",
  );
  return row?.examples ?? [];
}
