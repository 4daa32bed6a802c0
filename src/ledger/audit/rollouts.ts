/** The part of the audit that looks at rollouts: each paid once, refunded as far as it was not delivered. */
import type { RolloutId } from "#contract/ids.ts";
import type { Mils } from "#contract/mils.ts";
import type { RolloutStatus } from "#contract/rollout.ts";
import type { Sql } from "#platform/database.ts";

import { type AuditScope, pages } from "./pages.ts";

export async function* auditRollouts(tx: Sql, scope: AuditScope): AsyncGenerator<string> {
  for await (const rollout of rolloutsWithMoney(tx, scope)) {
    scope.checked("rollouts");
    yield* auditRollout(rollout);
  }
}

interface RolloutMoney {
  readonly id: RolloutId;
  readonly customer_id: string;
  readonly request_id: string;
  readonly status: RolloutStatus;
  readonly frames: number;
  readonly frames_delivered: number | null;
  readonly price_mils_per_frame: number;
  /** In force when it was accepted, by the rows of today: rows are added only, and never for the past. */
  readonly price_due: number | null;
  /** Whether its price is one that was in force a little earlier: a change may have been on its way. */
  readonly price_was_due: boolean;
  readonly charge_mils: Mils;
  readonly refunded_mils: Mils;
  /** Of its ledger entries; `strays` are those of another customer or kind. */
  readonly debits: bigint;
  readonly debited: bigint;
  readonly refunds: bigint;
  readonly refunded: bigint;
  readonly strays: bigint;
  /** Debits and refunds whose reference is not the request's id, by which a customer joins them. */
  readonly misnamed: bigint;
}

/** Charged once, what its frames cost by the price of that moment; refunded at most once, what was not delivered, and not before its end. */
function* auditRollout(r: RolloutMoney): Generator<string> {
  if (r.price_mils_per_frame !== r.price_due && !r.price_was_due) {
    yield `${r.id}: charged ${r.price_mils_per_frame} mils a frame, the price was ${r.price_due ?? "not set"}`;
  }
  const charge = BigInt(r.frames) * BigInt(r.price_mils_per_frame);
  if (r.charge_mils !== charge) yield `${r.id}: charged ${r.charge_mils} mils, its frames cost ${charge}`;
  if (r.debits !== 1n || r.debited !== -charge) {
    yield `${r.id}: ${r.debits} debits of ${r.debited} mils in the ledger, expected one of ${-charge}`;
  }
  const ended = r.status !== "queued" && r.status !== "dispatched";
  if (ended !== (r.frames_delivered !== null)) {
    yield `${r.id}: is ${r.status} with ${r.frames_delivered} frames delivered`;
  }
  const due = ended ? charge - BigInt(r.frames_delivered ?? 0) * BigInt(r.price_mils_per_frame) : 0n;
  if (r.refunded_mils !== due) {
    yield `${r.id}: is ${r.status} and says ${r.refunded_mils} mils refunded, due are ${due}`;
  }
  if (r.refunds !== (due > 0n ? 1n : 0n) || r.refunded !== due) {
    yield `${r.id}: ${r.refunds} refunds of ${r.refunded} mils in the ledger, due are ${due}`;
  }
  if (r.strays > 0n) yield `${r.id}: ${r.strays} ledger entries of another customer or kind name it`;
  if (r.misnamed > 0n) yield `${r.id}: ${r.misnamed} of its ledger entries do not have its reference, ${r.request_id}`;
}

/**
 * A price that takes effect at once is dated before it is committed: what was accepted in between was charged the price
 * that could be seen. An upper bound of the time between the two.
 */
const PRICE_ON_ITS_WAY = "1 minute";

function rolloutsWithMoney(tx: Sql, { customer }: AuditScope): AsyncGenerator<RolloutMoney> {
  return pages<RolloutMoney>((after, limit) =>
    tx.query(
      `SELECT r.id, r.customer_id, r.request_id, r.status, r.frames, r.frames_delivered, r.price_mils_per_frame,
              r.charge_mils, r.refunded_mils, e.*, price_in_force(r.customer_id, r.created_at) AS price_due,
              CASE WHEN r.price_mils_per_frame = price_in_force(r.customer_id, r.created_at) THEN true
                   ELSE r.price_mils_per_frame = price_in_force(r.customer_id, r.created_at - interval '${PRICE_ON_ITS_WAY}')
                     OR EXISTS (SELECT FROM prices p
                                 WHERE coalesce(p.customer_id, r.customer_id) = r.customer_id
                                   AND p.mils_per_frame = r.price_mils_per_frame
                                   AND p.effective_from BETWEEN r.created_at - interval '${PRICE_ON_ITS_WAY}' AND r.created_at)
              END AS price_was_due
         FROM (SELECT * FROM rollouts WHERE id > $1 AND ($2::text IS NULL OR customer_id = $2) ORDER BY id LIMIT $3) r
        CROSS JOIN LATERAL (
          SELECT count(*) FILTER (WHERE ours AND kind = 'debit') AS debits,
                 coalesce(sum(amount_mils) FILTER (WHERE ours AND kind = 'debit'), 0)::bigint AS debited,
                 count(*) FILTER (WHERE ours AND kind = 'refund') AS refunds,
                 coalesce(sum(amount_mils) FILTER (WHERE ours AND kind = 'refund'), 0)::bigint AS refunded,
                 count(*) FILTER (WHERE NOT ours OR kind NOT IN ('debit', 'refund')) AS strays,
                 count(*) FILTER (WHERE ours AND reference <> r.request_id) AS misnamed
            FROM (SELECT *, customer_id = r.customer_id AND account = 'balance' AS ours
                    FROM ledger_entries WHERE rollout_id = r.id) entries
        ) e
        ORDER BY r.id`,
      [after?.id ?? "", customer, limit],
    ),
  );
}
