/**
 * The part of the audit that looks at money from and to the outside: each payment against the entries that name it,
 * each entry against the payment or the operator's action that it names.
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
  for await (const entry of outsideEntries(tx, scope)) yield* auditOutsideEntry(entry);
  for await (const action of actionsWithMoney(tx, scope)) {
    scope.checked("operator_actions");
    if (!action.has_entry) {
      yield `operator's ${action.action} ${action.reference} of ${action.customer_id}: no ledger entry has its reference`;
    }
  }
}

interface Payment {
  readonly id: string;
  readonly customer_id: string | null;
  readonly paid_cents: number | null;
  /** Known to be ours, and neither a problem nor decided by an operator. */
  readonly is_due: boolean;
  readonly refunded_cents: number;
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
  const taken = (BigInt(p.refunded_cents) + p.disputed_cents) * MILS_PER_CENT;
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

interface OutsideEntry {
  readonly customer_id: string;
  readonly account: string;
  readonly seq: bigint;
  readonly kind: "credit" | "adjustment" | "clawback";
  readonly amount_mils: Mils;
  readonly reference: string;
  readonly has_payment: boolean;
  readonly has_action: boolean;
  readonly action_customer: string | null;
  readonly action_mils: Mils | null;
}

/** Grants of before operators' actions were recorded have none; where there is one, it is about the same customer. */
function* auditOutsideEntry(e: OutsideEntry): Generator<string> {
  const at = `${e.customer_id}/${e.account} entry ${e.seq}`;
  if (e.reference.startsWith("pi_") && !e.has_payment) yield `${at}: ${e.kind} of ${e.reference}, an unknown payment`;
  if (e.kind === "adjustment" && !e.has_action) {
    yield `${at}: adjustment ${e.reference} without a recorded action of an operator`;
  }
  if (e.has_action && e.action_customer !== e.customer_id) {
    yield `${at}: the operator's action ${e.reference} is about ${e.action_customer ?? "nobody"}`;
  }
  // Debt that such an entry repaid has its reference, too.
  if (e.kind !== "clawback" && e.action_mils !== null && e.action_mils !== e.amount_mils) {
    yield `${at}: moved ${e.amount_mils} mils, the operator's action ${e.reference} says ${e.action_mils}`;
  }
}

function outsideEntries(tx: Sql, { customer }: AuditScope): AsyncGenerator<OutsideEntry> {
  return pages<OutsideEntry>((after, limit) =>
    tx.query(
      `SELECT customer_id, account, seq, kind, amount_mils, reference,
              (SELECT id FROM payments p WHERE p.id = e.reference) IS NOT NULL AS has_payment,
              (SELECT id FROM operator_actions o WHERE o.reference = e.reference) IS NOT NULL AS has_action,
              (SELECT o.customer_id FROM operator_actions o WHERE o.reference = e.reference) AS action_customer,
              (SELECT (o.details ->> 'amount_mils')::bigint FROM operator_actions o WHERE o.reference = e.reference)
                AS action_mils
         FROM ledger_entries e
        WHERE kind IN ('credit', 'adjustment', 'clawback')
          AND (reference, customer_id, account, seq) > ($1, $2, $3, $4) AND reference >= $1
          AND ($5::text IS NULL OR customer_id = $5)
        ORDER BY reference, customer_id, account, seq LIMIT $6`,
      [after?.reference ?? "", after?.customer_id ?? "", after?.account ?? "", after?.seq ?? 0n, customer, limit],
    ),
  );
}

interface OperatorAction {
  readonly id: bigint;
  readonly action: string;
  readonly customer_id: string | null;
  readonly reference: string;
  readonly has_entry: boolean;
}

function actionsWithMoney(tx: Sql, { customer }: AuditScope): AsyncGenerator<OperatorAction> {
  return pages<OperatorAction>((after, limit) =>
    tx.query(
      `SELECT o.id, o.action, o.customer_id, o.reference,
              EXISTS (SELECT FROM ledger_entries e
                       WHERE e.reference = o.reference AND e.kind IN ('credit', 'adjustment', 'clawback')
                         AND e.customer_id = o.customer_id) AS has_entry
         FROM operator_actions o
        WHERE o.reference IS NOT NULL AND o.id > $1 AND ($2::text IS NULL OR o.customer_id = $2)
        ORDER BY o.id LIMIT $3`,
      [after?.id ?? 0n, customer, limit],
    ),
  );
}
