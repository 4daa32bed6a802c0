/** Credits, balances and their latest entries. Debits are in rollouts/try-accepting.ts, refunds in rollouts/settle.ts. */
import { ApiError } from "#contract/errors.ts";
import type { CustomerId } from "#contract/ids.ts";
import type { Mils } from "#contract/mils.ts";
import type { Sql } from "#platform/database.ts";

/** A row of a statement. On the wire an adjustment or clawback shows as credit or debit, by the sign of its amount. */
export interface LedgerEntry {
  readonly seq: bigint;
  readonly kind: "debit" | "credit" | "refund" | "adjustment" | "clawback";
  /** Signed. */
  readonly amount_mils: Mils;
  readonly balance_after_mils: Mils;
  readonly rollout_id: string | null;
  /** The request id of a debit or refund, the payment's id of a credit. */
  readonly reference: string;
  readonly detail: string;
  readonly created_at: Date;
  readonly hash: Buffer;
  /** The event by which Stripe told of a top-up; null for other entries, and where reconciliation found the payment. */
  readonly stripe_event_id: string | null;
}

export interface Credit {
  readonly customer_id: string;
  /** Above zero. */
  readonly amount: Mils;
  /** The payment's id: the same reference is credited once, however often and by whomever it is reported. */
  readonly reference: string;
  readonly detail: string;
}

/**
 * The other way round than postEntry: the entry comes first and the balance moves by what was entered, so that a
 * reference that is there already leaves both as they are and fails nothing, in a caller's transaction either.
 */
const CREDIT = `
  WITH held AS (
    SELECT customer_id, account, seq + 1 AS seq, balance_mils + $2 AS balance_mils, head_hash AS prev_hash,
           greatest(now(), last_entry_at) AS at
      FROM accounts
     WHERE customer_id = $1 AND account = 'balance'
       FOR NO KEY UPDATE
  ),
  entry AS (
    INSERT INTO ledger_entries (customer_id, account, seq, kind, amount_mils, balance_after_mils, rollout_id,
                                reference, detail, created_at, prev_hash, hash)
    SELECT customer_id, account, seq, 'credit', $2::bigint, balance_mils, NULL, $3, $4, at, prev_hash,
           ledger_hash(prev_hash, customer_id, account, seq, 'credit', $2, balance_mils, NULL, $3, $4, at)
      FROM held
        ON CONFLICT (reference) WHERE kind = 'credit' AND account = 'balance' DO NOTHING
    RETURNING *
  )
  UPDATE accounts a
     SET balance_mils = e.balance_after_mils, seq = e.seq, prev_hash = e.prev_hash, head_hash = e.hash,
         last_entry_at = e.created_at
    FROM entry e
   WHERE a.customer_id = e.customer_id AND a.account = e.account
  RETURNING a.seq`;

/**
 * `credited: false` when that reference was credited before; the balance is the present one in both cases, with what
 * was owed paid from it: the debt goes first, in the statement of the credit. Waits for whoever credits the same
 * reference just then. Throws ApiError(not_found), and an Error where the reference stands for another credit.
 */
export async function credit(sql: Sql, c: Credit): Promise<{ credited: boolean; balance_mils: Mils }> {
  if (c.amount <= 0n) throw new RangeError(`a credit must be above zero, got ${c.amount} mils`);
  const [moved] = await sql.query(CREDIT, [c.customer_id, c.amount, c.reference, c.detail]);
  // Read afterwards: what the statement returns is the balance before the trigger repaid debt from it.
  const balance_mils = await balanceOf(sql, c.customer_id);
  if (!moved) await assertSameCredit(sql, c);
  return { credited: moved !== undefined, balance_mils };
}

/** A payment reported twice with another customer or amount is no repetition: somebody is wrong, and must hear of it. */
async function assertSameCredit(sql: Sql, c: Credit): Promise<void> {
  const [earlier] = await sql.query<{ customer_id: string; amount_mils: Mils }>(
    `SELECT customer_id, amount_mils FROM ledger_entries
      WHERE reference = $1 AND kind = 'credit' AND account = 'balance'`,
    [c.reference],
  );
  if (earlier?.customer_id === c.customer_id && earlier.amount_mils === c.amount) return;
  throw new Error(
    `${c.reference} was credited before as ${earlier?.amount_mils} mils to ${earlier?.customer_id}, ` +
      `not ${c.amount} mils to ${c.customer_id}`,
  );
}

/** Throws ApiError(not_found). */
export async function balanceOf(sql: Sql, customerId: string): Promise<Mils> {
  return (await accountsOf(sql, customerId)).balance_mils;
}

/** Both accounts at one moment; at most one of them is above zero. Throws ApiError(not_found). */
export async function accountsOf(sql: Sql, customerId: string): Promise<{ balance_mils: Mils; debt_mils: Mils }> {
  const [row] = await sql.query<{ balance_mils: Mils; debt_mils: Mils }>(
    `SELECT balance.balance_mils, debt.balance_mils AS debt_mils
       FROM accounts balance JOIN accounts debt USING (customer_id)
      WHERE customer_id = $1 AND balance.account = 'balance' AND debt.account = 'debt'`,
    [customerId],
  );
  if (!row) throw new ApiError("not_found", `there is no customer ${customerId}`);
  return row;
}

/** Newest first: the newest `limit` entries of the balance, or of those before entry `beforeSeq`. */
export function transactionsOf(
  sql: Sql,
  customerId: CustomerId,
  limit: number,
  beforeSeq: bigint | null = null,
): Promise<LedgerEntry[]> {
  return sql.query<LedgerEntry>(
    `SELECT seq, kind, amount_mils, balance_after_mils, rollout_id, reference, detail, created_at, hash,
            CASE kind WHEN 'credit' THEN (SELECT credited_by_event FROM payments p WHERE p.id = e.reference) END
              AS stripe_event_id
       FROM ledger_entries e
      WHERE customer_id = $1 AND account = 'balance' AND seq < coalesce($2, 9223372036854775807)
      ORDER BY seq DESC LIMIT $3`,
    [customerId, beforeSeq, limit],
  );
}
