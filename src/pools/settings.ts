/** What an operator decided for a pool; beside it, the settings of the scheduler's process hold. */
import type { Sql } from "#platform/database.ts";

export interface PoolSettings {
  readonly model: string;
  /** So many workers are kept whatever comes; null: none. */
  readonly always_warm_workers: number | null;
  readonly set_by: string;
  readonly set_at: Date;
  readonly why: string;
}

/** Of the models that an operator decided something for. */
export function readPoolSettings(sql: Sql): Promise<PoolSettings[]> {
  return sql.query<PoolSettings>(
    `SELECT model, always_warm_workers, set_by, set_at, why FROM pool_settings ORDER BY model`,
  );
}

/** The scheduler heeds it at its next look. Who sets it records an event in the same transaction. */
export async function setAlwaysWarm(
  sql: Sql,
  { model, workers, by, why }: { model: string; workers: number | null; by: string; why: string },
): Promise<void> {
  await sql.query(
    `INSERT INTO pool_settings (model, always_warm_workers, set_by, why) VALUES ($1, $2, $3, $4)
     ON CONFLICT (model) DO UPDATE SET always_warm_workers = $2, set_by = $3, set_at = now(), why = $4`,
    [model, workers, by, why],
  );
}
