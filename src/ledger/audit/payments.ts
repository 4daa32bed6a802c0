/**
 * The part of the audit that looks at payments: each against the entries that name it. Entries against what allows them
 * are audit/entries.ts.
 */
import { type Mils, mils } from "#contract/mils.ts";
import type { Sql } from "#platform/database.ts";

import { type AuditScope, pages } from "./pages.ts";

const MILS_PER_CENT = 100n;

export async function* auditPayments(tx: Sql, scope: AuditScope): AsyncGenerator<string> {
  for await (const payment of payments(tx, scope)) {
    scope.checked("payments");
    yield* auditPayment(payment);
  }
}

interface Payment {
  readonly id: string;
  readonly customer_id: string | null;
  readonly paid_cents: number | null;
  /** Known to be ours, and neither a problem nor decided by an operator. */
  readonly is_due: boolean;
  /** The most that Stripe ever said in all; of single refunds, those that stand and those that failed. */
  readonly refunded_cents: number;
  readonly refunds_cents: bigint;
  readonly failed_refunds_cents: bigint;
  /** Disputed amounts that Stripe holds or kept. */
  readonly disputed_cents: bigint;
  readonly credited_mils: Mils;
  readonly clawed_back_mils: Mils;
  /** Of the ledger entries with its id as their reference. */
  readonly credits: bigint;
  readonly credited: bigint;
  readonly clawed_back: bigint;
  readonly strangers: bigint;
}

/** Credited at most once and what was paid; taken back what Stripe took back; the ledger says the same. */
function* auditPayment(p: Payment): Generator<string> {
  if (p.credits > 1n) yield `payment ${p.id}: was credited ${p.credits} times`;
  if (p.credited !== p.credited_mils) {
    yield `payment ${p.id}: says ${p.credited_mils} mils credited, the ledger ${p.credited}`;
  }
  if (p.clawed_back !== p.clawed_back_mils) {
    yield `payment ${p.id}: says ${p.clawed_back_mils} mils clawed back, the ledger ${p.clawed_back}`;
  }
  const paid = mils(BigInt(p.paid_cents ?? 0) * MILS_PER_CENT);
  if (p.credited_mils !== paid && (p.credited_mils !== 0n || p.is_due)) {
    yield `payment ${p.id}: credited ${p.credited_mils} mils, paid were ${paid}`;
  }
  const told = BigInt(p.refunded_cents) - p.failed_refunds_cents;
  const taken = ((told > p.refunds_cents ? told : p.refunds_cents) + p.disputed_cents) * MILS_PER_CENT;
  const due = taken < p.credited_mils ? taken : p.credited_mils;
  if (p.clawed_back_mils !== due) {
    yield `payment ${p.id}: ${p.clawed_back_mils} mils clawed back, refunds and disputes make it ${due}`;
  }
  if (p.strangers > 0n) {
    yield `payment ${p.id}: ${p.strangers} ledger entries of others than ${p.customer_id ?? "a known customer"} name it`;
  }
}

function payments(tx: Sql, { customer }: AuditScope): AsyncGenerator<Payment> {
  return pages<Payment>((after, limit) =>
    tx.query(
      `SELECT p.id, p.customer_id, p.paid_cents, p.refunded_cents, p.credited_mils, p.clawed_back_mils, e.*,
              (SELECT coalesce(sum(amount_cents), 0) FROM payment_refunds r
                WHERE r.payment_id = p.id AND r.state <> 'failed')::bigint AS refunds_cents,
              (SELECT coalesce(sum(amount_cents), 0) FROM payment_refunds r
                WHERE r.payment_id = p.id AND r.state = 'failed')::bigint AS failed_refunds_cents,
              p.customer_id IS NOT NULL AND p.problem IS NULL AND p.resolution IS NULL AS is_due,
              (SELECT coalesce(sum(amount_cents), 0) FROM payment_disputes d
                WHERE d.payment_id = p.id AND d.state IN ('open', 'lost'))::bigint AS disputed_cents
         FROM (SELECT p.*, t.customer_id FROM payments p LEFT JOIN topups t ON t.id = p.topup_id
                WHERE p.id > $1 AND ($2::text IS NULL OR t.customer_id = $2) ORDER BY p.id LIMIT $3) p
        CROSS JOIN LATERAL (
          SELECT count(*) FILTER (WHERE kind = 'credit') AS credits,
                 coalesce(sum(amount_mils) FILTER (WHERE kind = 'credit'), 0)::bigint AS credited,
                 coalesce(sum(CASE account WHEN 'debt' THEN amount_mils ELSE -amount_mils END)
                          FILTER (WHERE kind = 'clawback'), 0)::bigint AS clawed_back,
                 count(*) FILTER (WHERE customer_id IS DISTINCT FROM p.customer_id) AS strangers
            FROM ledger_entries
           WHERE reference = p.id AND kind IN ('credit', 'adjustment', 'clawback')
        ) e
        ORDER BY p.id`,
      [after?.id ?? "", customer, limit],
    ),
  );
}
