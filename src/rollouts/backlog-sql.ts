/** How the backlog is read in SQL: along its index (model, line, customer, time), a few rows of each customer. */
import type { Lane } from "#contract/rollout.ts";

/** The lines of `rollouts.line` that make up a lane: scored rollouts wait in a line of their own. */
export const LINES = {
  realtime: ["realtime"],
  bulk: ["bulk", "scored"],
} as const satisfies Record<Lane, readonly string[]>;

/**
 * A recursive query named `heads (line, customer_id, created_at, id)`: of each line in `lines` the first queued rollout of each
 * customer that meets `condition` on `r`. Jumps from one customer to the next along the index: what stands behind a
 * customer's first costs nothing. The first row of each line is the start of the walk, of no customer and without an id.
 */
export const headsOf = ({ model, lines, condition = "true" }: ReadOfLines): string => `
  heads AS (
    SELECT of.line, '' AS customer_id, NULL::timestamptz AS created_at, NULL::text AS id FROM ${lines} AS of (line)
    UNION ALL
    SELECT following.* FROM heads h CROSS JOIN LATERAL (
      SELECT r.line, r.customer_id, r.created_at, r.id FROM rollouts r
       WHERE r.model = ${model} AND r.status = 'queued' AND r.line = h.line AND r.customer_id > h.customer_id
         AND (${condition})
       ORDER BY r.customer_id, r.created_at, r.id LIMIT 1
    ) following
  )`;

/**
 * A query for the first `limit` queued rollouts `r` in each of `lines`, of one customer or of all: all told they may be more.
 * PostgreSQL does not see the limit in a SELECT of its own, and so expects a tenth of the rows: where it knew that fewer than
 * the limit are there it would read all of them and sort, and without an order it takes whichever index is at hand.
 */
export const firstOf = ({ model, lines, customer, limit, condition = "true", columns = "r.id" }: ReadFirst): string => `
  SELECT first.* FROM ${lines} AS of (line) CROSS JOIN LATERAL (
    SELECT ${columns} FROM rollouts r
     WHERE r.model = ${model} AND r.status = 'queued' AND r.line = of.line
       AND ${customer === undefined ? "true" : `r.customer_id = ${customer}`} AND (${condition})
     ORDER BY r.customer_id, r.created_at, r.id LIMIT (SELECT ${limit})
  ) first`;

/** A query named `scored`: by customer, the scored rollouts that are dispatched. Those few are all that is looked at. */
export const SCORED_DISPATCHED = `
  scored AS MATERIALIZED (
    SELECT customer_id, count(*)::int AS dispatched FROM rollouts
     WHERE status = 'dispatched' AND line = 'scored' GROUP BY customer_id)`;

/** All are SQL. */
interface ReadOfLines {
  readonly model: string;
  /** What stands behind FROM and has a row of each line. */
  readonly lines: string;
  readonly condition?: string;
}

interface ReadFirst extends ReadOfLines {
  readonly customer?: string;
  /** May name `of.line`. */
  readonly limit: string;
  readonly columns?: string;
}
