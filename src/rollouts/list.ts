/**
 * A customer's rollouts, newest first, a page at a time. What a page costs does not grow with how many there are, nor with
 * how few of them a filter lets through.
 */
import type { CustomerId, DatasetId, RolloutId } from "#contract/ids.ts";
import type { RolloutStatus } from "#contract/rollout.ts";
import type { Sql } from "#platform/database.ts";

import { type Rollout, ROLLOUT_COLUMNS } from "./rollout.ts";

export interface RolloutFilter {
  readonly customer_id: CustomerId;
  /** Rows of this dataset; without it, what belongs to no dataset. */
  readonly dataset_id: DatasetId | null;
  readonly statuses: readonly RolloutStatus[] | null;
  readonly model: string | null;
  /** Accepted at that time or later. */
  readonly created_after: Date | null;
  /** Accepted before that time. */
  readonly created_before: Date | null;
}

export interface Page {
  readonly rollouts: readonly Rollout[];
  /** Where the next page begins: after this one. Null at the end. A page may be short, or empty, and not be the last. */
  readonly next: RolloutId | null;
}

/** Rows that one page looks at: some ten milliseconds, where a filter lets next to nothing through. */
export const LOOKED_AT_MAX = 10_000;

/** `after`: a rollout of this customer, which need not be in the list any more. */
export async function listRollouts(
  sql: Sql,
  filter: RolloutFilter,
  { after, limit, lookedAtMax = LOOKED_AT_MAX }: { after: RolloutId | null; limit: number; lookedAtMax?: number },
): Promise<Page> {
  const { text, params } = lookedAt(filter, after);
  const add = (value: unknown): string => `$${params.push(value)}`;
  const wanted: string[] = [];
  if (filter.statuses) wanted.push(`status = ANY (${add(filter.statuses)})`);
  if (filter.model !== null) wanted.push(`model = ${add(filter.model)}`);

  const rows = await sql.query<Rollout>(
    `SELECT ${ROLLOUT_COLUMNS} FROM (${text} LIMIT ${add(lookedAtMax)}) AS looked_at
      ${wanted.length === 0 ? "" : `WHERE ${wanted.join(" AND ")}`}
      ORDER BY created_at DESC, id DESC LIMIT ${add(limit + 1)}`,
    params,
  );
  if (rows.length > limit) return { rollouts: rows.slice(0, limit), next: rows[limit - 1]?.id ?? null };
  if (wanted.length === 0) return { rollouts: rows, next: null };
  return {
    rollouts: rows,
    next: await lookedAtUpTo(sql, filter, { after, given: rows.at(-1)?.id ?? null, lookedAtMax }),
  };
}

/**
 * Where a page ended that was not filled: at the last row it looked at. Null when there were fewer: the list has been looked
 * through to its end. Rows that have come since move that place towards newer ones, so it counts only where it is not
 * newer than the last row `given`: a row may be looked at again, but is not given again, and none is passed over.
 */
async function lookedAtUpTo(
  sql: Sql,
  filter: RolloutFilter,
  { after, given, lookedAtMax }: { after: RolloutId | null; given: RolloutId | null; lookedAtMax: number },
): Promise<RolloutId | null> {
  const { text, params } = lookedAt(filter, after, "id, created_at");
  const add = (value: unknown): string => `$${params.push(value)}`;
  const last = `${text} OFFSET ${add(lookedAtMax - 1)} LIMIT 1`;
  const theGiven = add(given);
  const [row] = await sql.query<{ id: RolloutId }>(
    `SELECT CASE WHEN (created_at, id) > (SELECT created_at, id FROM rollouts WHERE id = ${theGiven})
                 THEN ${theGiven} ELSE id END AS id
       FROM (${last}) AS last`,
    params,
  );
  return row?.id ?? null;
}

/** In the order of the indexes rollouts_listed and rollouts_of_dataset, one of which it walks along. */
function lookedAt(
  { customer_id, dataset_id, created_after, created_before }: RolloutFilter,
  after: RolloutId | null,
  columns = ROLLOUT_COLUMNS,
): { text: string; params: unknown[] } {
  const params: unknown[] = [customer_id];
  const add = (value: unknown): string => `$${params.push(value)}`;
  const within = ["customer_id = $1", dataset_id === null ? "dataset_id IS NULL" : `dataset_id = ${add(dataset_id)}`];
  // Compared in the database: a Date has no microseconds.
  if (after !== null) {
    within.push(
      `(created_at, id) < (SELECT created_at, id FROM rollouts WHERE id = ${add(after)} AND customer_id = $1)`,
    );
  }
  if (created_after) within.push(`created_at >= ${add(created_after)}`);
  if (created_before) within.push(`created_at < ${add(created_before)}`);
  return {
    text: `SELECT ${columns} FROM rollouts WHERE ${within.join(" AND ")} ORDER BY created_at DESC, id DESC`,
    params,
  };
}
