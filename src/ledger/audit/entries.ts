/**
 * The part of the audit that asks of each entry what allows it: money comes in by a payment or by an operator's recorded
 * action alone, each of them once, and a debt is paid from the balance alone. Debits and refunds are audit/rollouts.ts.
 */
import { LOCAL_CUSTOMER } from "#contract/ids.ts";
import { type Mils, mils } from "#contract/mils.ts";
import type { Sql } from "#platform/database.ts";

import { type AuditScope, pages } from "./pages.ts";

export async function* auditOutsideEntries(tx: Sql, scope: AuditScope): AsyncGenerator<string> {
  const recordedFrom = await actionsRecordedFrom(tx);
  for await (const entries of byReference(outsideEntries(tx, scope, recordedFrom))) {
    for (const entry of entries) yield* entry.kind === "clawback" ? auditClawback(entry) : auditGift(entry);
    yield* auditOnce(entries);
    yield* auditRepayments(entries);
  }
  for await (const action of actionsWithMoney(tx, scope)) {
    scope.checked("operator_actions");
    if (!action.has_entry) {
      yield `operator's ${action.action} ${action.reference} of ${action.customer_id}: no ledger entry has its reference`;
    }
  }
}

interface OutsideEntry {
  readonly customer_id: string;
  readonly account: "balance" | "debt";
  readonly seq: bigint;
  readonly kind: "credit" | "adjustment" | "clawback";
  readonly amount_mils: Mils;
  readonly reference: string;
  /** From before operators' actions were recorded. */
  readonly is_old: boolean;
  readonly has_payment: boolean;
  /** Whose top-up the payment is. */
  readonly payment_customer: string | null;
  readonly has_action: boolean;
  readonly action_customer: string | null;
  readonly action_mils: Mils | null;
  /** What the entry directly before it brought under the same reference; null where that is another, or took something. */
  readonly brought_before_mils: Mils | null;
}

const nameOf = (e: OutsideEntry): string => `${e.customer_id}/${e.account} entry ${e.seq}`;

/** The credit of the built-in customer of a server with AUTH=off. */
const LOCAL = { reference: "local_credit", amount: mils(10_000_000) };

/** A credit or an adjustment: allowed by a payment of that customer, or by an action that says how much to whom. */
function* auditGift(e: OutsideEntry): Generator<string> {
  const at = nameOf(e);
  if (e.has_action) {
    if (e.action_customer !== e.customer_id) {
      yield `${at}: the operator's action ${e.reference} is about ${e.action_customer ?? "nobody"}`;
    }
    if (e.action_mils !== e.amount_mils) {
      yield `${at}: moved ${e.amount_mils} mils, the operator's action ${e.reference} says ${e.action_mils ?? "nothing"}`;
    }
    return;
  }
  if (e.kind === "adjustment") {
    yield `${at}: adjustment ${e.reference} without a recorded action of an operator`;
    return;
  }
  if (e.has_payment) {
    yield* auditPayer(e);
    return;
  }
  if (e.reference.startsWith("pi_")) {
    yield `${at}: credit of ${e.reference}, an unknown payment`;
    return;
  }
  const isLocal = e.customer_id === LOCAL_CUSTOMER && e.reference === LOCAL.reference && e.amount_mils === LOCAL.amount;
  if (!isLocal && !e.is_old) {
    yield `${at}: credit ${e.reference} of ${e.amount_mils} mils has neither a payment nor a recorded action of an operator`;
  }
}

/** Of a payment, or the repayment of a debt: from the balance as much as the entry before it brought in. */
function* auditClawback(e: OutsideEntry): Generator<string> {
  if (e.has_payment) {
    yield* auditPayer(e);
    return;
  }
  const at = nameOf(e);
  if (e.reference.startsWith("pi_")) yield `${at}: clawback of ${e.reference}, an unknown payment`;
  else if (e.amount_mils > 0n) {
    yield `${at}: clawback ${e.reference} of ${e.amount_mils} mils, and there is no payment of that name`;
  } else if (e.account === "balance" && e.amount_mils + (e.brought_before_mils ?? 0n) < 0n) {
    yield `${at}: took ${0n - e.amount_mils} mils as ${e.reference}, and the entry before it did not bring them in`;
  }
}

function* auditPayer(e: OutsideEntry): Generator<string> {
  if (e.payment_customer !== e.customer_id) {
    yield `${nameOf(e)}: payment ${e.reference} is of ${e.payment_customer ?? "an unknown customer"}`;
  }
}

/** One payment or action is one credit or adjustment. */
function* auditOnce(entries: readonly OutsideEntry[]): Generator<string> {
  const [first, ...more] = entries.filter(({ kind }) => kind !== "clawback");
  for (const e of more)
    yield `${nameOf(e)}: ${e.reference} moved money before, in ${first ? nameOf(first) : "another"}`;
}

/** Where no payment was taken back, clawbacks are debt that was repaid: out of both accounts alike, customer by customer. */
function* auditRepayments(entries: readonly OutsideEntry[]): Generator<string> {
  const repayments = entries.filter(({ kind, has_payment }) => kind === "clawback" && !has_payment);
  for (const [customer, of] of Map.groupBy(repayments, ({ customer_id }) => customer_id)) {
    const sum = { balance: 0n, debt: 0n };
    for (const { account, amount_mils } of of) sum[account] += amount_mils;
    if (sum.balance !== sum.debt) {
      yield `${customer}: clawbacks ${of[0]?.reference} moved the balance by ${sum.balance} mils and the debt by ${sum.debt}; without a payment both must be the same`;
    }
  }
}

/** Runs of entries with one reference, which is what they come ordered by. A reference has a handful. */
async function* byReference(entries: AsyncIterable<OutsideEntry>): AsyncGenerator<readonly OutsideEntry[]> {
  let run: OutsideEntry[] = [];
  for await (const entry of entries) {
    if (run[0] !== undefined && run[0].reference !== entry.reference) {
      yield run;
      run = [];
    }
    run.push(entry);
  }
  yield run;
}

/** When the table of operators' actions came to be (its first row says so); earlier grants have none. */
async function actionsRecordedFrom(tx: Sql): Promise<string> {
  const [row] = await tx.query<{ at: string }>("SELECT at::text FROM operator_actions ORDER BY id LIMIT 1");
  return row?.at ?? "-infinity";
}

function outsideEntries(tx: Sql, { customer }: AuditScope, recordedFrom: string): AsyncGenerator<OutsideEntry> {
  return pages<OutsideEntry>((after, limit) =>
    tx.query(
      `SELECT customer_id, account, seq, kind, amount_mils, reference, created_at < $7::timestamptz AS is_old,
              (SELECT id FROM payments p WHERE p.id = e.reference) IS NOT NULL AS has_payment,
              (SELECT t.customer_id FROM payments p JOIN topups t ON t.id = p.topup_id WHERE p.id = e.reference)
                AS payment_customer,
              (SELECT id FROM operator_actions o WHERE o.reference = e.reference) IS NOT NULL AS has_action,
              (SELECT o.customer_id FROM operator_actions o WHERE o.reference = e.reference) AS action_customer,
              (SELECT (o.details ->> 'amount_mils')::bigint FROM operator_actions o WHERE o.reference = e.reference)
                AS action_mils,
              CASE WHEN kind = 'clawback' AND account = 'balance' THEN
                (SELECT b.amount_mils FROM ledger_entries b
                  WHERE b.customer_id = e.customer_id AND b.account = 'balance' AND b.seq = e.seq - 1
                    AND b.reference = e.reference AND b.amount_mils > 0)
              END AS brought_before_mils
         FROM ledger_entries e
        WHERE kind IN ('credit', 'adjustment', 'clawback')
          AND (reference, customer_id, account, seq) > ($1, $2, $3, $4) AND reference >= $1
          AND ($5::text IS NULL OR customer_id = $5)
        ORDER BY reference, customer_id, account, seq LIMIT $6`,
      [
        after?.reference ?? "",
        after?.customer_id ?? "",
        after?.account ?? "",
        after?.seq ?? 0n,
        customer,
        limit,
        recordedFrom,
      ],
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
