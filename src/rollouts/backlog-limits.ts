/**
 * How many rollouts may wait in a lane of a model. The limits are soft: they are looked up before anything is paid for and not
 * in the statement that pays, where every debit would have to count. What several processes take in at once may go beyond.
 */
import type { CustomerId } from "#contract/ids.ts";
import type { Lane } from "#contract/rollout.ts";
import type { Config } from "#platform/config.ts";
import type { Sql } from "#platform/database.ts";

import { firstOf, LINES } from "./backlog-sql.ts";
import { countBacklog } from "./dispatch.ts";

export interface BacklogLimits {
  /** Of one customer. */
  readonly per_customer: number;
  /** Of all customers together. */
  readonly all: number;
}

export const backlogLimitsOf = (config: Pick<Config, "BACKLOG_MAX_PER_CUSTOMER" | "BACKLOG_MAX">): BacklogLimits => ({
  per_customer: config.BACKLOG_MAX_PER_CUSTOMER,
  all: config.BACKLOG_MAX,
});

export interface BacklogPlace {
  readonly model: string;
  readonly lane: Lane;
  readonly customer_id: CustomerId;
}

const OWN = firstOf({ model: "$1", lines: "unnest($2::text[])", customer: "$3", limit: "$4::int" });

/** Rollouts of a customer that wait there, counted up to `limit` in each line. */
export async function countOwnBacklog(
  sql: Sql,
  { model, lane, customer_id }: BacklogPlace,
  limit: number,
): Promise<number> {
  const [row] = await sql.query<{ count: number }>(`SELECT count(*)::int AS count FROM (${OWN}) AS own`, [
    model,
    LINES[lane],
    customer_id,
    limit,
  ]);
  return row?.count ?? 0;
}

/** What rows of datasets leave free of either limit, for those who ask one by one and would be refused. */
const SHARE_OF_DATASETS = 0.5;
const mayWait = (limit: number): number => Math.max(1, Math.floor(limit * SHARE_OF_DATASETS));

/** A customer's rows stay in line with so many, also where others fill the backlog: else they would never have their share. */
const ROWS_IN_LINE_MIN = 32;

/** Rollouts that rows of a customer's datasets may still add to the backlog; 0 where they have to wait. */
export async function roomForRows(
  sql: Sql,
  model: string,
  customer_id: CustomerId,
  limits: BacklogLimits,
): Promise<number> {
  const place = { model, lane: "bulk", customer_id } as const;
  const own = await countOwnBacklog(sql, place, mayWait(limits.per_customer));
  const all = await countBacklog(sql, model, place.lane, mayWait(limits.all));
  const besideOthers = Math.max(mayWait(limits.all) - all, ROWS_IN_LINE_MIN - own);
  return Math.max(0, Math.min(mayWait(limits.per_customer) - own, besideOthers));
}
