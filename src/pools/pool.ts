/** A model's workers as the leading scheduler saw and wanted them at its latest look. */
import type { PoolState } from "#contract/pool.ts";
import type { Sql } from "#platform/database.ts";
import { fencedBy } from "#rollouts/leader.ts";

import type { Reason } from "./reason.ts";

export interface Pool {
  readonly model: string;
  /** Who runs its workers; none: somebody else, and their numbers are told from what they do. */
  readonly fleet: "local" | "kubernetes" | "none";
  /** Ready and starting workers that there should be, and why. */
  readonly desired: number;
  readonly reason: Reason;
  readonly ready: number;
  readonly starting: number;
  /** Told to go, and finishing what they have. */
  readonly draining: number;
  /** In the backlog or the queue. */
  readonly waiting_rollouts: number;
  readonly waiting_samples: number;
  /** Active in the queue, also without a worker that lives. */
  readonly active_rollouts: number;
  readonly active_samples: number;
  /** What waits, in seconds of one warm worker. */
  readonly waiting_work_s: number;
  /** Samples that a worker holds at once in a lane. */
  readonly samples_per_worker: number;
  /** Of a worker for one sample of a rollout of the usual length, as measured; null: nothing has been yet. */
  readonly seconds_per_sample: number | null;
  readonly cold_start_s: number;
  readonly minimum: number;
  readonly maximum: number;
  readonly scaledown_s: number;
  readonly always_warm_workers: number | null;
  /** Why the last worker died, while they keep dying. */
  readonly crash_loop: string | null;
  readonly looked_at: Date;
}

/** A leader looks once a second, and another one takes over within five; what is older than this nobody looks after. */
const STALE_AFTER_MS = 15_000;

const COLUMNS = [
  "model",
  "fleet",
  "desired",
  "reason",
  "ready",
  "starting",
  "draining",
  "waiting_rollouts",
  "waiting_samples",
  "active_rollouts",
  "active_samples",
  "waiting_work_s",
  "samples_per_worker",
  "seconds_per_sample",
  "cold_start_s",
  "minimum",
  "maximum",
  "scaledown_s",
  "always_warm_workers",
  "crash_loop",
  "looked_at",
] as const satisfies readonly (keyof Pool)[];

/** Of every model that a scheduler ever looked at, by name. */
export function readPools(sql: Sql): Promise<Pool[]> {
  return sql.query<Pool>(`SELECT ${COLUMNS.join(", ")} FROM pools ORDER BY model`);
}

/** Only in the leader's term; false when another one leads by now. */
export async function writePool(sql: Sql, epoch: bigint, pool: Pool): Promise<boolean> {
  const values = COLUMNS.map((column) => (column === "reason" ? JSON.stringify(pool.reason) : pool[column]));
  const written = await sql.query(
    `INSERT INTO pools (${COLUMNS.join(", ")})
     SELECT ${COLUMNS.map((_column, index) => `$${index + 2}`).join(", ")} WHERE ${fencedBy("$1")}
     ON CONFLICT (model) DO UPDATE SET ${COLUMNS.slice(1)
       .map((column) => `${column} = excluded.${column}`)
       .join(", ")}
     RETURNING model`,
    [epoch, ...values],
  );
  return written.length > 0;
}

/** Whether a leader looked at it of late. */
export const isLookedAfter = ({ looked_at }: Pick<Pool, "looked_at">, nowMs: number): boolean =>
  nowMs - looked_at.getTime() <= STALE_AFTER_MS;

/** What a client is told. A pool that nobody looks after answers nobody, whatever its workers did last. */
export function poolStateOf(
  pool: Pick<Pool, "ready" | "starting" | "looked_at"> | undefined,
  nowMs: number,
): PoolState {
  if (pool === undefined || !isLookedAfter(pool, nowMs)) return "cold";
  if (pool.ready > 0) return "warm";
  return pool.starting > 0 ? "warming" : "cold";
}
