/**
 * A month of a customer's accounts, with what is needed to verify it: where the chain stood before, every entry with
 * its hashes, where it stands after. Entries are append-only and their times never go back, so a month is a range of
 * sequence numbers; once its end is known, its pages can be read one by one without holding a snapshot.
 */
import type { CustomerId } from "#contract/ids.ts";
import type { Mils } from "#contract/mils.ts";
import type { Sql } from "#platform/database.ts";

import type { HashedEntry } from "./entry-hash.ts";

export const STATEMENT_ACCOUNTS = ["balance", "debt"] as const;
export type StatementAccount = (typeof STATEMENT_ACCOUNTS)[number];

/** Entries in memory at once, however long the month. */
const PAGE_ENTRIES = 1_000;

/** Where an account stood: after entry `seq`, or before its first one (0, and no hash). */
export interface ChainState {
  readonly seq: bigint;
  readonly balance_mils: Mils;
  readonly head_hash: Buffer;
}

/** One account in [from, to). */
export interface StatementRange {
  readonly account: StatementAccount;
  readonly opening: ChainState;
  readonly closing: ChainState;
}

export type StatementEntry = HashedEntry & { readonly prev_hash: Buffer; readonly hash: Buffer };

/**
 * The number of the last entry before `at`, by halving: sequence numbers have no gaps, so a search takes some log2(n)
 * look-ups by primary key, and no index by customer and time is needed. LIMIT keeps each of them a look-up: joined,
 * the planner would read the whole account, whose size it does not know.
 */
const lastBefore = (at: string): string => `
  (WITH RECURSIVE search (lo, hi) AS (
     SELECT 1::bigint, a.seq + 1
     UNION ALL
     SELECT CASE WHEN middle.created_at < ${at} THEN middle.seq + 1 ELSE lo END,
            CASE WHEN middle.created_at < ${at} THEN hi ELSE middle.seq END
       FROM search, LATERAL (${entryAt("(lo + hi) / 2")}) middle
      WHERE lo < hi
   )
   SELECT lo - 1 FROM search WHERE lo = hi)`;

function entryAt(seq: string): string {
  return `SELECT e.seq, e.created_at, e.balance_after_mils, e.hash FROM ledger_entries e
           WHERE e.customer_id = a.customer_id AND e.account = a.account AND e.seq = ${seq} LIMIT 1`;
}

const RANGES = `
  SELECT a.account,
         r.before AS opening_seq, coalesce(opening.balance_after_mils, 0) AS opening_balance,
         coalesce(opening.hash, '\\x') AS opening_hash,
         r.last AS closing_seq, coalesce(closing.balance_after_mils, 0) AS closing_balance,
         coalesce(closing.hash, '\\x') AS closing_hash
    FROM accounts a
   CROSS JOIN LATERAL (
     SELECT ${lastBefore("$2::timestamptz")} AS before, ${lastBefore("$3::timestamptz")} AS last OFFSET 0
   ) r
    LEFT JOIN LATERAL (${entryAt("r.before")}) opening ON true
    LEFT JOIN LATERAL (${entryAt("r.last")}) closing ON true
   WHERE a.customer_id = $1`;

/** Both accounts at one moment. Throws where an account's entries have a gap, which nothing of ours can make. */
export async function statementRanges(
  sql: Sql,
  customerId: CustomerId,
  from: Date,
  to: Date,
): Promise<StatementRange[]> {
  const rows = await sql.query<{
    account: StatementAccount;
    opening_seq: bigint | null;
    opening_balance: Mils;
    opening_hash: Buffer;
    closing_seq: bigint | null;
    closing_balance: Mils;
    closing_hash: Buffer;
  }>(RANGES, [customerId, from.toISOString(), to.toISOString()]);
  return STATEMENT_ACCOUNTS.map((account) => {
    const row = rows.find((one) => one.account === account);
    if (!row || row.opening_seq === null || row.closing_seq === null) {
      throw new Error(`the ${account} account of ${customerId} is not whole; see \`dream-engine ledger verify\``);
    }
    return {
      account,
      opening: { seq: row.opening_seq, balance_mils: row.opening_balance, head_hash: row.opening_hash },
      closing: { seq: row.closing_seq, balance_mils: row.closing_balance, head_hash: row.closing_hash },
    };
  });
}

/** The entries after `opening` up to `closing`, oldest first. */
export async function* statementEntries(
  sql: Sql,
  customerId: CustomerId,
  { account, opening, closing }: StatementRange,
): AsyncGenerator<StatementEntry> {
  let after = opening.seq;
  while (after < closing.seq) {
    const page = await sql.query<StatementEntry>(
      `SELECT customer_id, account, seq, kind, amount_mils, balance_after_mils, rollout_id, reference, detail,
              to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS created_at_text, prev_hash, hash
         FROM ledger_entries
        WHERE customer_id = $1 AND account = $2 AND seq > $3 AND seq <= $4 ORDER BY seq LIMIT $5`,
      [customerId, account, after, closing.seq, PAGE_ENTRIES],
    );
    yield* page;
    const last = page.at(-1);
    if (!last) throw new Error(`entry ${after + 1n} of ${customerId}/${account} is missing`);
    after = last.seq;
  }
}
