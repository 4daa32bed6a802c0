/**
 * How many workers a fleet was last asked for that asks us (KEDA does, by `GET /scaling/<model>`). In the database, so that every
 * scheduler gives the leader's answer. By the database's clock alone: those of two schedulers need not agree.
 */
import type { Sql } from "#platform/database.ts";
import { fencedBy } from "#rollouts/leader.ts";

export interface Asked {
  readonly workers: number;
  /** Since it was last said. */
  readonly age_s: number;
}

/** The pool has to be there (`writePool`). Only in the leader's term; false when another one leads by now. */
export async function askFor(sql: Sql, epoch: bigint, model: string, workers: number): Promise<boolean> {
  const written = await sql.query(
    `UPDATE pools SET asked = $3, asked_at = now() WHERE model = $2 AND ${fencedBy("$1")} RETURNING model`,
    [epoch, model, workers],
  );
  return written.length > 0;
}

/** Null: never. */
export async function readAsked(sql: Sql, model: string): Promise<Asked | null> {
  const [row] = await sql.query<Asked>(
    `SELECT asked AS workers, extract(epoch FROM now() - asked_at)::float8 AS age_s
       FROM pools WHERE model = $1 AND asked IS NOT NULL`,
    [model],
  );
  return row ?? null;
}
