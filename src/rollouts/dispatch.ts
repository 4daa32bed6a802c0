/** From the backlog to the workers: what the dispatcher reads and writes, and the job that a worker gets. */
import type { CustomerId, RolloutId } from "#contract/ids.ts";
import { blobKeys, type PredictJob } from "#contract/jobs.ts";
import { ASYNC_RUN_MAX_MS } from "#contract/limits.ts";
import type { Lane } from "#contract/rollout.ts";
import type { Sql } from "#platform/database.ts";

import { firstOf, headsOf, LINES, SCORED_DISPATCHED } from "./backlog-sql.ts";
import { fencedBy } from "./leader.ts";
import { type Rollout, ROLLOUT_COLUMNS } from "./rollout.ts";

/** When the sweep first looks at a dispatched rollout: its job should be in the queue long before. */
const FIRST_SWEEP_AFTER_MS = 5_000;

/** What of a rollout decides whether it goes next. */
export interface Queued {
  readonly id: RolloutId;
  readonly customer_id: CustomerId;
  readonly queued_ms: number;
  readonly k: number;
  /** What the engine generates for it: candidates times actions, and all of it twice where it is scored. */
  readonly frames: number;
  /** Its customer's. */
  readonly weight: number;
}

const QUEUED_MS = `(extract(epoch FROM r.created_at) * 1000)::float8 AS queued_ms`;
const QUEUED_COLUMNS = `r.id, r.customer_id, ${QUEUED_MS}, r.k,
  r.k * r.actions_per_candidate * CASE WHEN r.scored THEN 2 ELSE 1 END AS frames, c.dispatch_weight AS weight`;

/** Queued rollouts of one lane of a model, counted up to `limit`. */
export async function countBacklog(sql: Sql, model: string, lane: Lane, limit: number): Promise<number> {
  const first = firstOf({ model: "$1", lines: "unnest($2::text[])", limit: "$3::int" });
  const [row] = await sql.query<{ count: number }>(
    `SELECT least($3, count(*))::int AS count FROM (${first}) AS counted`,
    [model, LINES[lane], limit],
  );
  return row?.count ?? 0;
}

/** A customer's oldest queued rollout of a lane. */
export async function firstInBacklog(
  sql: Sql,
  { model, lane, customer_id }: { readonly model: string; readonly lane: Lane; readonly customer_id: CustomerId },
): Promise<Pick<Queued, "id"> | null> {
  const first = firstOf({
    model: "$1",
    lines: "unnest($2::text[])",
    customer: "$3",
    limit: "1",
    columns: "r.created_at, r.id",
  });
  const [row] = await sql.query<Pick<Queued, "id">>(
    `SELECT id FROM (${first}) AS of_lines ORDER BY created_at, id LIMIT 1`,
    [model, LINES[lane], customer_id],
  );
  return row ?? null;
}

/** What of the backlog is asked for. */
interface BacklogLine {
  readonly model: string;
  readonly lane: Lane;
  /** What had to begin by then may not any more: the sweep ends it. */
  readonly now: Date;
  /** Of a customer's scored rollouts so many may be dispatched at once, of all models together. The others may not begin. */
  readonly scoredAtOnceMax: number;
}

/** The first queued rollout of each customer who has any in that lane that may begin. */
export function readHeads(
  sql: Sql,
  { model, lane, now, scoredAtOnceMax }: BacklogLine,
): Promise<Pick<Queued, "id" | "customer_id" | "queued_ms">[]> {
  const heads = headsOf({ model: "$1", lines: "unnest($2::text[])", condition: "r.deadline_at > $3" });
  return sql.query(
    `WITH RECURSIVE ${heads}, ${SCORED_DISPATCHED}
     SELECT DISTINCT ON (customer_id) id, customer_id, ${QUEUED_MS}
       FROM heads r LEFT JOIN scored s USING (customer_id)
      WHERE r.id IS NOT NULL AND (r.line <> 'scored' OR coalesce(s.dispatched, 0) < $4)
      ORDER BY customer_id, r.created_at, r.id`,
    [model, LINES[lane], now, scoredAtOnceMax],
  );
}

/** Of each of these customers the first `each` queued rollouts that may begin, first come, first served. */
export function readBacklog(
  sql: Sql,
  { model, lane, now, scoredAtOnceMax, customers, each }: BacklogLine & BacklogOf,
): Promise<Queued[]> {
  const first = firstOf({
    model: "$1",
    lines: "unnest($2::text[])",
    customer: "c.id",
    limit: "CASE WHEN of.line = 'scored' THEN least($5, greatest(0, $6 - coalesce(s.dispatched, 0))) ELSE $5 END",
    condition: "r.deadline_at > $3",
    columns: "r.id, r.customer_id, r.created_at, r.k, r.actions_per_candidate, r.scored",
  });
  return sql.query<Queued>(
    `WITH ${SCORED_DISPATCHED}
     SELECT ${QUEUED_COLUMNS}
       FROM unnest($4::text[]) AS wanted (customer_id)
       JOIN customers c ON c.id = wanted.customer_id
       LEFT JOIN scored s ON s.customer_id = c.id
      CROSS JOIN LATERAL (SELECT * FROM (${first}) AS of_lines ORDER BY created_at, id LIMIT $5) r`,
    [model, LINES[lane], now, customers, each, scoredAtOnceMax],
  );
}

interface BacklogOf {
  readonly customers: readonly string[];
  readonly each: number;
}

/**
 * What of a lane was dispatched last, oldest first, each customer's in the order in which it was queued: all that has not
 * ended, and what of the latest `ended` ends was of that lane. What expired is left out: it never ran.
 */
export function readDispatched(
  sql: Sql,
  model: string,
  lane: Lane,
  ended: number,
): Promise<(Queued & { readonly dispatched_ms: number })[]> {
  return sql.query(
    `SELECT ${QUEUED_COLUMNS}, (extract(epoch FROM r.dispatched_at) * 1000)::float8 AS dispatched_ms
       FROM ((SELECT id FROM rollouts WHERE status = 'dispatched')
             UNION ALL
             (SELECT id FROM rollouts WHERE finished_at IS NOT NULL ORDER BY finished_at DESC LIMIT $3)) AS latest
       JOIN rollouts r ON r.id = latest.id AND r.model = $1 AND r.lane = $2
        AND r.dispatched_at IS NOT NULL AND r.status <> 'expired'
       JOIN customers c ON c.id = r.customer_id
      ORDER BY r.dispatched_at, r.created_at, r.id`,
    [model, lane, ended],
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
 * order of `ids`. What nobody waits for may begin until its `start_by`, and gets time to run on top of that. Committed before
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
     SELECT ${ROLLOUT_COLUMNS} FROM marked ORDER BY array_position($2::text[], id)`,
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
