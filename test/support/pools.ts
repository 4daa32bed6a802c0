import type { Sql } from "#platform/database.ts";
import type { PoolSeconds } from "#pools/hours.ts";
import type { Pool } from "#pools/pool.ts";

/** What a scheduler writes of a pool without workers and work, but for what a test is about. */
export const poolRow = (overrides: Partial<Pool> & Pick<Pool, "model">): Pool => ({
  fleet: "local",
  desired: 0,
  reason: { kind: "no_work" },
  ready: 0,
  starting: 0,
  draining: 0,
  waiting_rollouts: 0,
  waiting_samples: 0,
  active_rollouts: 0,
  active_samples: 0,
  waiting_work_s: 0,
  samples_per_worker: 8,
  seconds_per_sample: null,
  cold_start_s: 70,
  minimum: 0,
  maximum: 4,
  scaledown_s: 60,
  always_warm_workers: null,
  crash_loop: null,
  looked_at: new Date(),
  ...overrides,
});

interface PoolHour extends PoolSeconds {
  readonly model: string;
  /** Its beginning, in UTC. */
  readonly hour: Date;
}

/** Hours that began in [from, until), oldest first. */
export function readPoolHours(sql: Sql, from: Date, until: Date): Promise<PoolHour[]> {
  return sql.query<PoolHour>(
    `SELECT model, hour, starting_s, ready_s, busy_s, draining_s, cold_starts FROM pool_hours
      WHERE hour >= $1 AND hour < $2 ORDER BY hour, model`,
    [from, until],
  );
}
