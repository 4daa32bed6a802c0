/**
 * The auditor: recomputes every account from its entries alone and compares rollouts, payments and operators' actions
 * with them, and datasets with their rollouts. It trusts none of the code that writes: chains are hashed here, sums are
 * added here, the rules of a rollout's, a dataset's and a payment's money are stated again (audit/).
 */
import type { Database, Sql } from "#platform/database.ts";

import { auditAccounts } from "./audit/accounts.ts";
import { auditDatasets } from "./audit/datasets.ts";
import { auditOutsideEntries } from "./audit/entries.ts";
import { type AuditScope, type Checked } from "./audit/pages.ts";
import { auditPayments } from "./audit/payments.ts";
import { auditRollouts } from "./audit/rollouts.ts";

/** After so many problems the books are broken enough; a list without end would help nobody. */
export const PROBLEMS_MAX = 1_000;
/** Rows between two reports of progress. */
const REPORT_EVERY_ROWS = 500;

export interface AuditOptions {
  /** One customer alone; the whole ledger otherwise. */
  readonly customer?: string | undefined;
  /** Rows done, of how many there are about. */
  readonly onProgress?: (done: number, total: number) => void;
  /** Ends the audit after so many; PROBLEMS_MAX when it is not given. */
  readonly problemsMax?: number;
  /** Ends the audit before its next page, with the signal's reason. */
  readonly signal?: AbortSignal;
}

export interface Audit {
  readonly checked: Readonly<Checked>;
  /** The disagreements as sentences, at most `problemsMax`; none when the books balance. */
  readonly problems: readonly string[];
}

/** Reads one snapshot and locks nothing, so it may run at any time. */
export function auditLedger(db: Pick<Database, "transaction">, options: AuditOptions = {}): Promise<Audit> {
  const { customer = null, onProgress, signal, problemsMax = PROBLEMS_MAX } = options;
  return db.transaction(async (tx) => {
    await tx.query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY");
    const stoppable: Sql = {
      query: (text, params) => {
        signal?.throwIfAborted();
        return tx.query(text, params);
      },
    };
    const total = onProgress ? await rowsOf(tx, customer) : 0;
    const checked: Checked = {
      accounts: 0,
      entries: 0,
      rollouts: 0,
      dataset_rows: 0,
      payments: 0,
      operator_actions: 0,
    };
    let done = 0;
    const scope: AuditScope = {
      customer,
      checked: (what) => {
        checked[what] += 1;
        done += 1;
        if (done % REPORT_EVERY_ROWS === 0) onProgress?.(done, total);
      },
    };
    const problems: string[] = [];
    for await (const problem of disagreements(stoppable, scope)) {
      problems.push(problem);
      if (problems.length >= problemsMax) break;
    }
    onProgress?.(total, total);
    return { checked, problems };
  });
}

/** The problems of the whole ledger alone. */
export async function verifyLedger(db: Pick<Database, "transaction">): Promise<readonly string[]> {
  return (await auditLedger(db)).problems;
}

async function* disagreements(tx: Sql, scope: AuditScope): AsyncGenerator<string> {
  yield* auditAccounts(tx, scope);
  yield* auditRollouts(tx, scope);
  yield* auditDatasets(tx, scope);
  yield* auditPayments(tx, scope);
  yield* auditOutsideEntries(tx, scope);
}

async function rowsOf(tx: Sql, customer: string | null): Promise<number> {
  const [row] = await tx.query<{ rows: number }>(
    `SELECT (SELECT coalesce(sum(seq + 1), 0)::float8 FROM accounts WHERE $1::text IS NULL OR customer_id = $1)
          + (SELECT count(*) FROM rollouts WHERE $1::text IS NULL OR customer_id = $1)
          + (SELECT coalesce(sum(rows_total), 0) FROM datasets WHERE $1::text IS NULL OR customer_id = $1)
          + CASE WHEN $1::text IS NULL THEN (SELECT count(*) FROM payments) ELSE 0 END AS rows`,
    [customer],
  );
  return row?.rows ?? 0;
}
