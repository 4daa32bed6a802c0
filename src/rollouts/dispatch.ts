/** From the backlog to the workers: what the dispatcher reads and writes, and the job that a worker gets. */
import type { RolloutId } from "#contract/ids.ts";
import { blobKeys, type PredictJob } from "#contract/jobs.ts";
import { ASYNC_RUN_MAX_MS } from "#contract/limits.ts";
import type { Lane } from "#contract/rollout.ts";
import type { Sql } from "#platform/database.ts";

import { fencedBy } from "./leader.ts";
import { type Rollout, ROLLOUT_COLUMNS } from "./rollout.ts";

/** When the sweep first looks at a dispatched rollout: its job should be in the queue long before. */
const FIRST_SWEEP_AFTER_MS = 5_000;

/** What of a queued rollout decides whether it goes next. */
export type Queued = Pick<Rollout, "id" | "k" | "deadline_at">;

/** Queued rollouts of one model in one lane: first come, first served. */
export function readBacklog(sql: Sql, model: string, lane: Lane, limit: number): Promise<Queued[]> {
  return sql.query<Queued>(
    `SELECT id, k, deadline_at FROM rollouts WHERE model = $1 AND status = 'queued' AND (lane = 'bulk') = $2
      ORDER BY created_at, id LIMIT $3`,
    [model, lane === "bulk", limit],
  );
}

/** A rollout counts as many samples as it has candidates. */
export interface InFlight {
  readonly rollouts: number;
  readonly samples: number;
}

/** What of one model is dispatched and not finished, by lane. */
export async function readInFlight(sql: Sql, model: string): Promise<Record<Lane, InFlight>> {
  const rows = await sql.query<InFlight & { readonly lane: Lane }>(
    `SELECT lane, count(*)::int AS rollouts, sum(k)::int AS samples
       FROM rollouts WHERE model = $1 AND status = 'dispatched' GROUP BY lane`,
    [model],
  );
  const inFlight = { realtime: { rollouts: 0, samples: 0 }, bulk: { rollouts: 0, samples: 0 } };
  for (const { lane, rollouts, samples } of rows) inFlight[lane] = { rollouts, samples };
  return inFlight;
}

/**
 * `queued → dispatched`, for those of `ids` that are still queued and only in the leader's term; returns them in the
 * backlog's order. What nobody waits for may begin until its `start_by`, and gets time to run on top of that. Committed before
 * their jobs are added: the other way round a fast job would run twice, or a cancelled one at all.
 */
export async function markDispatched(sql: Sql, epoch: bigint, ids: readonly RolloutId[]): Promise<Rollout[]> {
  return await sql.query<Rollout>(
    `WITH marked AS (
       UPDATE rollouts
          SET status = 'dispatched', attempt = attempt + 1, dispatched_at = now(),
              sweep_at = least(now() + $3::float8 * interval '1 ms', start_by),
              deadline_at = CASE WHEN start_by IS NULL THEN deadline_at
                                 ELSE greatest(start_by, now()) + $4::float8 * interval '1 ms' END
        WHERE id = ANY ($2) AND status = 'queued' AND ${fencedBy("$1")}
       RETURNING ${ROLLOUT_COLUMNS}
     )
     SELECT ${ROLLOUT_COLUMNS} FROM marked ORDER BY (lane = 'bulk'), created_at, id`,
    [epoch, ids, FIRST_SWEEP_AFTER_MS, ASYNC_RUN_MAX_MS],
  );
}

/** Those of `ids` that were called off. */
export function readCalledOff(sql: Sql, ids: readonly RolloutId[]): Promise<Rollout[]> {
  return sql.query<Rollout>(
    `SELECT ${ROLLOUT_COLUMNS} FROM rollouts WHERE id = ANY ($1) AND status IN ('cancelled', 'expired')`,
    [ids],
  );
}

/** The job of the rollout's current attempt. */
export function predictJobOf(rollout: Rollout): PredictJob {
  return {
    rollout_id: rollout.id,
    attempt: rollout.attempt,
    model: rollout.model,
    lane: rollout.lane,
    frame_key: blobKeys.frame(rollout.id),
    actions_key: blobKeys.actions(rollout.id),
    k: rollout.k,
    actions_per_candidate: rollout.actions_per_candidate,
    params: rollout.params,
    debited_mils: String(rollout.charge_mils),
    deadline_ms: rollout.deadline_at.getTime(),
    ...(rollout.start_by && { start_by_ms: rollout.start_by.getTime() }),
    alone: false,
  };
}
