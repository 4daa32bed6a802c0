/**
 * How entries get into the ledger: CTEs for a data-modifying statement, for one entry and for many. (A credit inserts its
 * entry first, because the entry's reference decides whether anything moves: ledger.ts.)
 *
 * One entry: two CTEs. One UPDATE moves the balance, the sequence number and the head of the hash chain under the
 * account's row lock; the INSERT appends the entry that its RETURNING describes. A balance that would fall below zero moves nothing, and the CTE `moved` is then empty.
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

/**
 * Many entries of one account, in order and as if each had come alone: one that the balance cannot bear any more is left
 * out, and those after it are tried all the same. The account is locked once and moves once, by their sum.
 *
 * `source` names a CTE of a single customer with the columns of postEntry and `n`, which orders its rows. It is read to
 * its end before the account is locked, so locks that it takes come first. `linked` has all columns of `source`, and
 * posted (whether the entry was taken up), seq, balance_mils, prev_hash, hash and at; where not posted, balance_mils
 * is what the entry was too much for.
 *
 * For a single row postEntry costs some 50 µs less: here the row is locked before the UPDATE and the hash made in a window.
 */
export const postEntries = (source: string): string => `
  held AS (
    SELECT customer_id, account, seq, balance_mils, head_hash, greatest(now(), last_entry_at) AS at
      FROM accounts
     WHERE customer_id = (SELECT min(customer_id) FROM ${source}) AND account = 'balance'
       FOR NO KEY UPDATE
  ),
  linked AS (
    SELECT entries.*, (link).*
      FROM (
        SELECT s.*, h.account, h.at,
               ledger_chain(h.seq, h.balance_mils, h.head_hash, s.customer_id, h.account, s.kind, s.amount_mils,
                            s.rollout_id, s.reference, s.detail, h.at)
                 OVER (ORDER BY s.n ROWS UNBOUNDED PRECEDING) AS link
          FROM ${source} s CROSS JOIN held h
      ) entries
  ),
  moved AS (
    UPDATE accounts a
       SET balance_mils = l.balance_mils, seq = l.seq, prev_hash = l.prev_hash, head_hash = l.hash, last_entry_at = l.at
      FROM (SELECT * FROM linked WHERE posted ORDER BY n DESC LIMIT 1) l
     WHERE a.customer_id = l.customer_id AND a.account = l.account
  ),
  entry AS (
    INSERT INTO ledger_entries (customer_id, account, seq, kind, amount_mils, balance_after_mils, rollout_id,
                                reference, detail, created_at, prev_hash, hash)
    SELECT customer_id, account, seq, kind, amount_mils, balance_mils, rollout_id,
           reference, detail, at, prev_hash, hash
      FROM linked WHERE posted
  )`;
