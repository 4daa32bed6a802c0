/**
 * Who works on a dataset. A runner takes one for a turn, under a name that is of this turn alone, and nobody else may
 * have it until the lease ends. Whoever froze and wakes up after that finds another name in the row: every transaction of
 * a turn begins with `lockMine`, so an old turn can change nothing, whatever it still holds in its hands.
 */
import type { CustomerId, DatasetId } from "#contract/ids.ts";
import type { Sql } from "#platform/database.ts";

import { type Dataset, DATASET_COLUMNS } from "./dataset.ts";

export interface Turn {
  readonly dataset_id: DatasetId;
  /** Differs from every other turn's, of this runner and of others. */
  readonly name: string;
}

/**
 * The dataset that has waited longest for a look, for `leaseMs`; null when none is to be looked at. One that is paused
 * is, as long as rows of it run or are being put back, or when none is left to wait for. `without`: customers of whom this runner has enough in hand.
 */
export async function takeTurn(
  sql: Sql,
  {
    name,
    leaseMs,
    without,
  }: { readonly name: string; readonly leaseMs: number; readonly without: readonly CustomerId[] },
): Promise<Dataset | null> {
  const [dataset] = await sql.query<Dataset>(
    `UPDATE datasets SET runner_id = $1, runner_until = now() + $2::float8 * interval '1 ms', worked_at = now()
      WHERE id = (SELECT id FROM datasets
                   WHERE (state IN ('running', 'cancelling') OR (state = 'paused' AND (rows_running > 0 OR rows_pending = 0 OR retry_after IS NOT NULL)))
                     AND (runner_until IS NULL OR runner_until <= now()) AND customer_id <> ALL ($3)
                   ORDER BY worked_at LIMIT 1 FOR UPDATE SKIP LOCKED)
     RETURNING ${DATASET_COLUMNS}`,
    [name, leaseMs, without],
  );
  return dataset ?? null;
}

/** False when the turn is another one's by now. */
export async function renewTurn(sql: Sql, turn: Turn, leaseMs: number): Promise<boolean> {
  const rows = await sql.query(
    `UPDATE datasets SET runner_until = now() + $3::float8 * interval '1 ms' WHERE id = $1 AND runner_id = $2 RETURNING id`,
    [turn.dataset_id, turn.name, leaseMs],
  );
  return rows.length > 0;
}

/** Lets the next one have it, after `pauseMs`: where there was nothing to do there will hardly be at once. */
export async function endTurn(sql: Sql, turn: Turn, pauseMs: number): Promise<void> {
  await sql.query(
    `UPDATE datasets SET runner_id = NULL, runner_until = now() + $3::float8 * interval '1 ms'
      WHERE id = $1 AND runner_id = $2`,
    [turn.dataset_id, turn.name, pauseMs],
  );
}

/** The dataset as it is now; null when the turn is another one's. */
export async function readMine(sql: Sql, turn: Turn): Promise<Dataset | null> {
  const [dataset] = await sql.query<Dataset>(
    `SELECT ${DATASET_COLUMNS} FROM datasets WHERE id = $1 AND runner_id = $2`,
    [turn.dataset_id, turn.name],
  );
  return dataset ?? null;
}

/** The dataset, locked until the transaction ends; null when the turn is another one's by now. */
export async function lockMine(tx: Sql, turn: Turn): Promise<Dataset | null> {
  const [dataset] = await tx.query<Dataset>(
    `SELECT ${DATASET_COLUMNS} FROM datasets WHERE id = $1 AND runner_id = $2 FOR UPDATE`,
    [turn.dataset_id, turn.name],
  );
  return dataset ?? null;
}
