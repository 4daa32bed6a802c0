/** One rollout with all that an operator is asked about: whose it is, how it went, and each mil that it moved. */
import type { RolloutId } from "#contract/ids.ts";
import type { Mils } from "#contract/mils.ts";
import type { Sql } from "#platform/database.ts";

import { type Rollout, ROLLOUT_COLUMNS } from "./rollout.ts";

export interface RolloutEntry {
  readonly kind: "debit" | "refund";
  readonly amount_mils: Mils;
  readonly balance_after_mils: Mils;
  readonly at: Date;
}

export interface OperatorRollout {
  readonly rollout: Rollout;
  readonly email: string | null;
  readonly signup_email: string | null;
  /** In the order in which they were written. */
  readonly entries: readonly RolloutEntry[];
}

/** Whosever it is; null when there is none. */
export async function findForOperator(sql: Sql, id: RolloutId): Promise<OperatorRollout | null> {
  const [rollout] = await sql.query<Rollout>(`SELECT ${ROLLOUT_COLUMNS} FROM rollouts WHERE id = $1`, [id]);
  if (!rollout) return null;
  const [customer] = await sql.query<{ email: string | null; signup_email: string | null }>(
    `SELECT email, signup_email FROM customers WHERE id = $1`,
    [rollout.customer_id],
  );
  const entries = await sql.query<RolloutEntry>(
    `SELECT kind, amount_mils, balance_after_mils, created_at AS at FROM ledger_entries
      WHERE rollout_id = $1 ORDER BY seq`,
    [id],
  );
  return { rollout, email: customer?.email ?? null, signup_email: customer?.signup_email ?? null, entries };
}
