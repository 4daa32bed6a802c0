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
export type Queued = Pick<Rollout, "id" | "k" | "deadline_at" | "created_at">;

/** Queued rollouts of one model in one lane: first come, first served. Without scored ones: readScoredBacklog. */
export function readBacklog(sql: Sql, model: string, lane: Lane, limit: number): Promise<Queued[]> {
  return sql.query<Queued>(
    // Not "=": the planner makes "lane <> 'bulk'" of "= false", which the index does not know, and reads the whole backlog.
    `SELECT id, k, deadline_at, created_at FROM rollouts
      WHERE model = $1 AND status = 'queued' AND (lane = 'bulk') BETWEEN $2 AND $2 AND NOT scored
      ORDER BY (lane = 'bulk'), created_at, id LIMIT $3`,
    [model, lane === "bulk", limit],
  );
}

/**
 * Queued scored rollouts of one model that may go now, oldest first: of each customer as many as bring it to `atOnceMax`
 * dispatched ones of all models. The others are left alone, and are not looked through: the customers that have some are
 * found one after the other, each by one look into the index.
 */
export function readScoredBacklog(sql: Sql, model: string, atOnceMax: number, limit: number): Promise<Queued[]> {
  return sql.query<Queued>(
    `WITH RECURSIVE waiting AS (
       SELECT min(customer_id) AS customer_id FROM rollouts WHERE model = $1 AND status = 'queued' AND scored
       UNION ALL
       SELECT (SELECT min(r.customer_id) FROM rollouts r
                WHERE r.model = $1 AND r.status = 'queued' AND r.scored AND r.customer_id > w.customer_id)
         FROM waiting w WHERE w.customer_id IS NOT NULL
     ),
     dispatched AS MATERIALIZED (
       SELECT customer_id, count(*)::int AS n FROM rollouts WHERE status = 'dispatched' AND scored GROUP BY customer_id
     )
     SELECT r.id, r.k, r.deadline_at, r.created_at
       FROM waiting w LEFT JOIN dispatched d USING (customer_id),
            LATERAL (SELECT * FROM rollouts q
                      WHERE q.model = $1 AND q.status = 'queued' AND q.scored AND q.customer_id = w.customer_id
                      ORDER BY q.created_at, q.id LIMIT greatest(0, $2 - coalesce(d.n, 0))) AS r
      ORDER BY r.created_at, r.id LIMIT $3`,
    [model, atOnceMax, limit],
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
    ...(rollout.scored && { scored: true }),
    debited_mils: String(rollout.charge_mils),
    deadline_ms: rollout.deadline_at.getTime(),
    ...(rollout.start_by && { start_by_ms: rollout.start_by.getTime() }),
    alone: false,
  };
}
