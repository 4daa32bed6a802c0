/**
 * The only way a rollout ends (take-back.ts changes one end afterwards): terminal state, refund of what was not delivered,
 * the release of its idempotency key where it was called off, and who is to be told of it, in one statement. The settlement
 * worker, cancellation and the sweep all call this, as often as they like: the first one settles. Row locks in the order
 * rollout → account → idempotency key.
 */
import type { RolloutId } from "#contract/ids.ts";
import type { Outcome } from "#contract/jobs.ts";
import { ROLLOUT_STATUSES } from "#contract/rollout.ts";
import { postEntry } from "#ledger/post.ts";
import type { Sql } from "#platform/database.ts";
import { tellReceivers } from "#webhooks/outbox.ts";

import { canTransition } from "./lifecycle.ts";
import { type Rollout, ROLLOUT_COLUMNS } from "./rollout.ts";

export interface Settled {
  /** Whether this call ended the rollout; false when it had ended, or when the outcome is of an earlier attempt. */
  readonly settled: boolean;
  /** As it is now; null when there is no such rollout. */
  readonly rollout: Rollout | null;
}

/**
 * `frames_delivered` is cut at what was charged for, and everything undelivered is refunded, whatever the outcome: a
 * success that brought fewer frames than it was paid for refunds the rest.
 *
 * A rollout that was called off (isCalledOff) gave nobody anything, so its idempotency key is set free and the customer's
 * retry runs anew; any other end keeps the key, and a retry is told the same end. The DELETE looks at `moved` to come after it:
 * whoever inserts an idempotency key holds its account, so the account must be locked first here too.
 *
 * Webhooks tell of what nobody waits for: a row of a dataset is told of with the dataset, and a caller that waits has the
 * answer, unless it named a `webhook_url` all the same.
 */
const SETTLE = `
  WITH ended AS (
    UPDATE rollouts
       SET status = $3,
           frames_delivered = least($4::int, frames),
           refunded_mils = charge_mils - least($4::int, frames)::bigint * price_mils_per_frame,
           result = $5,
           error_code = $6,
           error_message = $7,
           finished_at = now()
     WHERE id = $1 AND ($2::int IS NULL OR attempt = $2) AND status = ANY ($8)
    RETURNING ${ROLLOUT_COLUMNS}
  ),
  refund AS (
    SELECT customer_id, 'refund'::text AS kind, refunded_mils AS amount_mils, id AS rollout_id,
           request_id AS reference, concat('refund · ', model, ' · ', frames - frames_delivered, ' frames') AS detail
      FROM ended WHERE refunded_mils > 0
  ), ${postEntry("refund")},
  released AS (
    DELETE FROM idempotency_keys
     WHERE rollout_id = (SELECT id FROM ended WHERE status IN ('cancelled', 'expired')) AND (SELECT count(*) FROM moved) >= 0
  ),
  news AS (
    SELECT customer_id, concat('rollout.', status) AS event, id AS rollout_id, NULL AS dataset_id, webhook_url,
           waiter_id IS NULL AS to_endpoints
      FROM ended WHERE dataset_id IS NULL AND (waiter_id IS NULL OR webhook_url IS NOT NULL)
  ), ${tellReceivers("news")}
  SELECT ${ROLLOUT_COLUMNS} FROM ended`;

/** `attempt`: the one that the outcome is of, or null for whichever is current (cancellation, expiry). */
export async function settle(
  sql: Sql,
  rolloutId: RolloutId,
  attempt: number | null,
  outcome: Outcome,
): Promise<Settled> {
  const end = endOf(outcome);
  const [ended] = await sql.query<Rollout>(SETTLE, [
    rolloutId,
    attempt,
    outcome.kind,
    end.frames_delivered,
    end.result,
    end.error_code,
    end.error_message,
    ROLLOUT_STATUSES.filter((from) => canTransition(from, outcome.kind)),
  ]);
  if (ended) return { settled: true, rollout: ended };
  const [rollout] = await sql.query<Rollout>(`SELECT ${ROLLOUT_COLUMNS} FROM rollouts WHERE id = $1`, [rolloutId]);
  return { settled: false, rollout: rollout ?? null };
}

/** What the outcome puts into the row. */
function endOf(
  outcome: Outcome,
): Pick<Rollout, "result" | "error_code" | "error_message"> & { readonly frames_delivered: number } {
  const isFailure = outcome.kind === "failed";
  return {
    frames_delivered: framesDelivered(outcome),
    result: outcome.kind === "succeeded" ? outcome.result : null,
    error_code: isFailure ? outcome.code : null,
    error_message: isFailure ? outcome.message : null,
  };
}

function framesDelivered(outcome: Outcome): number {
  if (outcome.kind === "expired") return 0; // it never ran
  return outcome.kind === "succeeded" ? outcome.result.frames : outcome.frames_delivered;
}
