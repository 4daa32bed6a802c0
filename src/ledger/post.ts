/**
 * The one way an entry gets into the ledger: two CTEs for a data-modifying statement. One UPDATE moves the balance,
 * the sequence number and the head of the hash chain under the account's row lock; the INSERT appends the entry that
 * its RETURNING describes. A balance that would fall below zero moves nothing, and the CTE `moved` is then empty.
 *
 * `source` names a CTE that yields at most one row an account, with the columns customer_id, kind, amount_mils
 * (bigint, signed), rollout_id, reference and detail. `moved` has these and balance_mils, the balance afterwards.
 */
export const postEntry = (source: string): string => `
  moved AS (
    UPDATE accounts a
       SET balance_mils = a.balance_mils + s.amount_mils,
           seq = a.seq + 1,
           prev_hash = a.head_hash,
           head_hash = ledger_hash(a.head_hash, a.customer_id, a.account, a.seq + 1, s.kind, s.amount_mils,
                                   a.balance_mils + s.amount_mils, s.rollout_id, s.reference, s.detail,
                                   greatest(now(), a.last_entry_at)),
           last_entry_at = greatest(now(), a.last_entry_at)
      FROM ${source} s
     WHERE a.customer_id = s.customer_id AND a.account = 'balance' AND a.balance_mils + s.amount_mils >= 0
    RETURNING a.*, s.kind, s.amount_mils, s.rollout_id, s.reference, s.detail
  ),
  entry AS (
    INSERT INTO ledger_entries (customer_id, account, seq, kind, amount_mils, balance_after_mils, rollout_id,
                                reference, detail, created_at, prev_hash, hash)
    SELECT customer_id, account, seq, kind, amount_mils, balance_mils, rollout_id,
           reference, detail, last_entry_at, prev_hash, head_hash
      FROM moved
  )`;
