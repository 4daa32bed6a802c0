/**
 * Takes back that rollouts of a dataset succeeded: their videos got lost before anybody had them. The only step out of an
 * end (TAKEN_BACK), and beside settle.ts the only way to refund.
 */
import type { RolloutId } from "#contract/ids.ts";
import type { Mils } from "#contract/mils.ts";
import { postEntry } from "#ledger/post.ts";
import type { Sql } from "#platform/database.ts";

import { TAKEN_BACK } from "./lifecycle.ts";

export interface TakenBack {
  readonly id: RolloutId;
  readonly refunded_mils: Mils;
}

/**
 * All of them before the first entry: rollouts are locked before accounts. One that was refunded something at its end,
 * for frames that were missing, is left as it is: the ledger takes one refund a rollout.
 */
const TAKE_BACK = `
  WITH taken AS (
    UPDATE rollouts
       SET status = $2, error_code = $3, error_message = $4, result = NULL, frames_delivered = 0, refunded_mils = charge_mils
     WHERE id = ANY ($1) AND dataset_id IS NOT NULL AND status = $5 AND refunded_mils = 0
    RETURNING id, refunded_mils, finished_at
  ), changed AS (
    -- What these hours earned is to be summed anew (economics/earnings.ts).
    INSERT INTO earnings_hours (hour) SELECT DISTINCT date_trunc('hour', finished_at, 'UTC') FROM taken ORDER BY 1
    ON CONFLICT (hour) DO UPDATE SET rolled_at = NULL
  )
  SELECT id, refunded_mils FROM taken`;

/** An entry a statement: a debt is repaid by the trigger right after the entry that brought the money in. */
const REFUND = `
  WITH refund AS (
    SELECT customer_id, 'refund'::text AS kind, refunded_mils AS amount_mils, id AS rollout_id,
           request_id AS reference, concat('refund · ', model, ' · ', frames, ' frames · video lost') AS detail
      FROM rollouts WHERE id = $1
  ), ${postEntry("refund")}
  SELECT amount_mils FROM moved`;

/**
 * Those that were taken back, in the order of `ids`, each refunded all that it was charged; not among them is what has another end, or was
 * refunded before. Within the transaction that says of their rows why there is no video.
 */
export async function takeBack(tx: Sql, ids: readonly RolloutId[], message: string): Promise<TakenBack[]> {
  const { from, to, error_code } = TAKEN_BACK;
  const rows = await tx.query<TakenBack>(TAKE_BACK, [ids, to, error_code, message, from]);
  const taken = rows.toSorted((a, b) => ids.indexOf(a.id) - ids.indexOf(b.id));
  for (const { id, refunded_mils } of taken) {
    if (refunded_mils === 0n) continue; // it was charged nothing, and the ledger has no entry of nothing
    const [entry] = await tx.query(REFUND, [id]);
    if (!entry) throw new Error(`rollout ${id} could not be refunded: its customer has no account`);
  }
  return taken;
}
