/** A customer as an operator sees one: everything that a question on the telephone may be about. */
import type { Mils } from "#contract/mils.ts";
import { listKeys, type ListedKey } from "#keys/keys.ts";
import type { Sql } from "#platform/database.ts";

import { type ListedPrice, priceFor, pricesOf } from "./prices.ts";

const ENTRIES_SHOWN = 10;
const PAYMENTS_SHOWN = 10;
const ACTIONS_SHOWN = 10;

export interface CustomerRow {
  readonly customer_id: string;
  readonly email: string | null;
  /** What they signed up with, which nobody has confirmed. */
  readonly signup_email: string | null;
  readonly stripe_customer_id: string | null;
  readonly created_at: Date;
  readonly closed_at: Date | null;
  /** Share in dispatch, 1 to 100: see src/rollouts/weight.ts. */
  readonly dispatch_weight: number;
  readonly balance_mils: Mils;
  readonly debt_mils: Mils;
}

const CUSTOMERS = `
  SELECT c.id AS customer_id, c.email, c.signup_email, c.stripe_customer_id, c.created_at, c.closed_at, c.dispatch_weight,
         balance.balance_mils, debt.balance_mils AS debt_mils
    FROM customers c
    JOIN accounts balance ON balance.customer_id = c.id AND balance.account = 'balance'
    JOIN accounts debt ON debt.customer_id = c.id AND debt.account = 'debt'`;

/** Oldest first. */
export const listCustomers = (sql: Sql): Promise<CustomerRow[]> =>
  sql.query<CustomerRow>(`${CUSTOMERS} ORDER BY c.created_at, c.id`);

export interface TopUpRow {
  /** Null: the payment is known, and not what it was for. */
  readonly topup_id: string | null;
  readonly payment_id: string | null;
  readonly amount_cents: number | null;
  readonly state: string;
  readonly credited_mils: Mils | null;
  readonly clawed_back_mils: Mils | null;
  /** Why money that Stripe holds was not credited. */
  readonly problem: string | null;
  readonly at: Date;
}

interface EntryRow {
  readonly at: Date;
  readonly account: "balance" | "debt";
  readonly kind: string;
  readonly amount_mils: Mils;
  readonly balance_after_mils: Mils;
  readonly reference: string;
  readonly detail: string;
}

interface RolloutsRow {
  readonly status: string;
  readonly count: number;
  /** What is ours for good: nothing while they may still be refunded. */
  readonly earned_mils: Mils;
}

interface ActionRow {
  readonly at: Date;
  readonly operator: string;
  readonly action: string;
  readonly reason: string;
  readonly reference: string | null;
  readonly details: Readonly<Record<string, unknown>>;
}

export interface CustomerOverview extends CustomerRow {
  readonly mils_per_frame: number;
  readonly prices: readonly ListedPrice[];
  readonly keys: readonly ListedKey[];
  readonly rollouts: readonly RolloutsRow[];
  readonly topups: readonly TopUpRow[];
  readonly entries: readonly EntryRow[];
  readonly actions: readonly ActionRow[];
}

/** Null when there is no such customer. */
export async function readCustomer(sql: Sql, customerId: string): Promise<CustomerOverview | null> {
  const [customer] = await sql.query<CustomerRow>(`${CUSTOMERS} WHERE c.id = $1`, [customerId]);
  if (!customer) return null;
  const prices = await pricesOf(sql, customerId);
  return {
    ...customer,
    mils_per_frame: await priceFor(sql, customerId),
    prices: prices.filter((price) => price.customer_id !== null || price.state !== "past"),
    keys: await listKeys(sql, customerId),
    rollouts: await sql.query<RolloutsRow>(
      `SELECT status, count(*)::int AS count,
              coalesce(sum(charge_mils - refunded_mils) FILTER (WHERE finished_at IS NOT NULL), 0)::bigint AS earned_mils
         FROM rollouts WHERE customer_id = $1 GROUP BY status ORDER BY status`,
      [customerId],
    ),
    topups: await sql.query<TopUpRow>(
      `SELECT t.id AS topup_id, p.id AS payment_id, t.amount_cents, t.state, p.credited_mils, p.clawed_back_mils,
              p.problem, t.created_at AS at
         FROM topups t LEFT JOIN payments p ON p.topup_id = t.id
        WHERE t.customer_id = $1 ORDER BY t.created_at DESC LIMIT ${PAYMENTS_SHOWN}`,
      [customerId],
    ),
    entries: await sql.query<EntryRow>(
      // The ends of two chains, each by its primary key; a customer may have millions of entries.
      `SELECT created_at AS at, account, kind, amount_mils, balance_after_mils, reference, detail
         FROM unnest(ARRAY['balance', 'debt']) AS of
        CROSS JOIN LATERAL (SELECT * FROM ledger_entries WHERE customer_id = $1 AND account = of
                             ORDER BY seq DESC LIMIT ${ENTRIES_SHOWN}) last
        ORDER BY created_at DESC, account DESC, seq DESC LIMIT ${ENTRIES_SHOWN}`,
      [customerId],
    ),
    actions: await sql.query<ActionRow>(
      `SELECT at, operator, action, reason, reference, details
         FROM operator_actions WHERE customer_id = $1 ORDER BY id DESC LIMIT ${ACTIONS_SHOWN}`,
      [customerId],
    ),
  };
}
