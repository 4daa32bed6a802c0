/**
 * What the frames of a pool earned and what its workers did, hour by hour. An hour that is over is summed once by the leading
 * scheduler (rollUp); hours that are not, or that changed since, are read from their rollouts. So a month costs some hundred
 * rows, and is exact at any moment: both kinds are read by one statement, of one snapshot.
 *
 * A rollout counts in the hour of its end. One whose success is taken back later (rollouts/take-back.ts) leaves that hour again.
 */
import type { Mils } from "#contract/mils.ts";
import type { Database, Sql } from "#platform/database.ts";
import { fencedBy } from "#rollouts/leader.ts";

/**
 * An end is dated when its transaction begins, and is seen when that commits: a minute later at the very most, because
 * statements take 15 s at most and idleness in between 30 s (platform/database.ts). An hour leaves room for sixty of those.
 */
const SETTLED_AFTER = "1 hour";

/** Sums of the rollouts that ended in [hour, hour + 1 h), by model; `hour` is an SQL expression. */
const earnedIn = (hour: string): string => `
  SELECT r.model,
         count(*) FILTER (WHERE frames_delivered > 0) AS rollouts,
         sum(frames_delivered) AS frames,
         sum(charge_mils - refunded_mils) AS earned_mils,
         sum(refunded_mils) AS refunded_mils,
         count(result) AS timed,
         coalesce(sum((result #>> '{timings,engine_wall_ms}')::float8), 0) AS engine_wall_ms,
         coalesce(sum((result #>> '{timings,total_ms}')::float8), 0) AS total_ms,
         coalesce(sum(frames_delivered) FILTER (WHERE gap.began_at IS NOT NULL), 0) AS gap_frames
    FROM rollouts r
    LEFT JOIN LATERAL (
      -- The latest gap that had begun when it came, unless that was over.
      SELECT began_at FROM (SELECT began_at, ended_at FROM pool_gaps g
                             WHERE g.model = r.model AND g.began_at <= r.created_at ORDER BY began_at DESC LIMIT 1) AS latest
       WHERE ended_at IS NULL OR r.created_at < ended_at) AS gap ON true
   WHERE r.finished_at >= ${hour} AND r.finished_at < ${hour} + interval '1 hour'
   GROUP BY r.model`;

const SUMS = "rollouts, frames, earned_mils, refunded_mils, timed, engine_wall_ms, total_ms, gap_frames";

/** What a pool did in a period. */
export interface PoolPeriod {
  readonly model: string;
  /** Of which some frame was delivered. */
  readonly rollouts: number;
  readonly frames: number;
  /** Charged and not refunded. */
  readonly earned_mils: Mils;
  readonly refunded_mils: Mils;
  /** Rollouts that succeeded, with the sums of their timings. */
  readonly timed: number;
  readonly engine_wall_ms: number;
  readonly total_ms: number;
  readonly gap_frames: number;
  /** Worker seconds; `idle_s` is without work, draining included. */
  readonly working_s: number;
  readonly starting_s: number;
  readonly idle_s: number;
  readonly cold_starts: number;
  /** Mean over the worker seconds; null where no worker ran. */
  readonly gpu_usd_per_hour: number | null;
}

export interface Period {
  /** Whole hours. */
  readonly from: Date;
  readonly until: Date;
  /** Of hours that are not summed yet. */
  readonly gpuUsdPerHour: number;
}

/** Every pool that a scheduler looks after, and what else did something in the period, by name. */
export function readPeriod(sql: Sql, { from, until, gpuUsdPerHour }: Period): Promise<PoolPeriod[]> {
  return sql.query<PoolPeriod>(
    `WITH hours AS (
       SELECT hour, coalesce(e.gpu_usd_per_hour, $3) AS gpu_usd_per_hour, e.rolled_at IS NOT NULL AS rolled
         FROM generate_series($1::timestamptz, least($2::timestamptz - interval '1 hour', now()), interval '1 hour') AS h (hour)
         LEFT JOIN earnings_hours e USING (hour)
     ), earned AS (
       SELECT model, ${SUMS} FROM pool_earnings JOIN hours USING (hour) WHERE rolled
       UNION ALL
       SELECT live.model, ${SUMS} FROM hours CROSS JOIN LATERAL (${earnedIn("hours.hour")}) AS live WHERE NOT rolled
     ), earnings AS (
       SELECT model, ${SUMS.split(", ")
         .map((column) => `sum(${column}) AS ${column}`)
         .join(", ")}
         FROM earned GROUP BY model
     ), work AS (
       SELECT model, sum(busy_s) AS working_s, sum(starting_s) AS starting_s, sum(ready_s - busy_s + draining_s) AS idle_s,
              sum(cold_starts)::int AS cold_starts,
              sum((starting_s + ready_s + draining_s) * gpu_usd_per_hour) / nullif(sum(starting_s + ready_s + draining_s), 0)
                AS gpu_usd_per_hour
         FROM pool_hours JOIN hours USING (hour) GROUP BY model
     )
     SELECT model, coalesce(rollouts, 0)::float8 AS rollouts, coalesce(frames, 0)::float8 AS frames,
            coalesce(earned_mils, 0)::bigint AS earned_mils, coalesce(refunded_mils, 0)::bigint AS refunded_mils,
            coalesce(timed, 0)::float8 AS timed, coalesce(engine_wall_ms, 0) AS engine_wall_ms,
            coalesce(total_ms, 0) AS total_ms, coalesce(gap_frames, 0)::float8 AS gap_frames,
            coalesce(working_s, 0) AS working_s, coalesce(starting_s, 0) AS starting_s,
            greatest(0, coalesce(idle_s, 0)) AS idle_s, coalesce(cold_starts, 0) AS cold_starts, gpu_usd_per_hour
       FROM earnings FULL JOIN work USING (model) FULL JOIN (SELECT model FROM pools) AS pools USING (model) ORDER BY model`,
    [from, until, gpuUsdPerHour],
  );
}

/** The rent that the latest summed hour before `before` was reckoned with; null: none was. */
export async function readRentBefore(sql: Sql, before: Date): Promise<number | null> {
  const [row] = await sql.query<{ rent: number }>(
    `SELECT gpu_usd_per_hour AS rent FROM earnings_hours WHERE hour < $1 AND rolled_at IS NOT NULL
      ORDER BY hour DESC LIMIT 1`,
    [before],
  );
  return row?.rent ?? null;
}

export interface RollUpOptions {
  readonly epoch: bigint;
  readonly gpuUsdPerHour: number;
  /** Hours in one round. */
  readonly limit: number;
}

/**
 * Sums hours that are over, oldest first; how many. Only in the leader's term. Locks the hours before it reads rollouts: who
 * takes back a success locks its hour, too, so either this sees that, or the hour is marked again afterwards. The term is asked
 * for last, because that locks the leader's row, and the next leader would have to wait for a sum over a busy hour.
 */
export async function rollUp(db: Database, { epoch, gpuUsdPerHour, limit }: RollUpOptions): Promise<number> {
  const due = await readDue(db, limit);
  if (due.length === 0) return 0;
  const rolled = db.transaction(async (tx) => {
    await tx.query(
      `INSERT INTO earnings_hours (hour) SELECT hour FROM unnest($1::timestamptz[]) AS due (hour) ORDER BY hour
       ON CONFLICT (hour) DO UPDATE SET rolled_at = NULL`,
      [due],
    );
    await tx.query(`DELETE FROM pool_earnings WHERE hour = ANY ($1)`, [due]);
    await tx.query(
      `INSERT INTO pool_earnings (hour, model, ${SUMS})
       SELECT due.hour, model, ${SUMS} FROM unnest($1::timestamptz[]) AS due (hour) CROSS JOIN LATERAL (${earnedIn("due.hour")}) AS live`,
      [due],
    );
    const mine = await tx.query(
      `UPDATE earnings_hours SET rolled_at = now(), gpu_usd_per_hour = coalesce(gpu_usd_per_hour, $3)
        WHERE hour = ANY ($2) AND ${fencedBy("$1")} RETURNING hour`,
      [epoch, due, gpuUsdPerHour],
    );
    if (mine.length === 0) throw new TermOver();
    return due.length;
  });
  return await rolled.catch((error: unknown) => {
    if (error instanceof TermOver) return 0;
    throw error;
  });
}

/** Rolls back what was summed after another one began to lead. */
class TermOver extends Error {}

/** Those that changed, then those that follow the last one; the first of all is that of the first end. */
async function readDue(sql: Sql, limit: number): Promise<Date[]> {
  const rows = await sql.query<{ hour: Date }>(
    `WITH next AS (
       SELECT coalesce((SELECT max(hour) + interval '1 hour' FROM earnings_hours WHERE rolled_at IS NOT NULL),
                       (SELECT date_trunc('hour', min(finished_at), 'UTC') FROM rollouts WHERE finished_at IS NOT NULL)) AS hour,
              date_trunc('hour', now() - interval '${SETTLED_AFTER}', 'UTC') AS until
     )
     SELECT hour FROM (
       SELECT e.hour FROM earnings_hours e, next WHERE rolled_at IS NULL AND e.hour < next.until
       UNION
       SELECT h.hour FROM next, generate_series(next.hour, next.until - interval '1 hour', interval '1 hour') AS h (hour)
     ) AS due ORDER BY hour LIMIT $1`,
    [limit],
  );
  return rows.map(({ hour }) => hour);
}

/** Gaps are needed until the rollouts that came in them have been summed; taken back is hardly anything after a month. */
const GAPS_KEPT = "100 days";

/** Only in the leader's term. */
export async function deleteOldGaps(sql: Sql, epoch: bigint, limit: number): Promise<void> {
  await sql.query(
    `DELETE FROM pool_gaps
      WHERE (model, began_at) IN (SELECT model, began_at FROM pool_gaps WHERE ended_at < now() - interval '${GAPS_KEPT}'
                                   ORDER BY ended_at LIMIT $2)
        AND ${fencedBy("$1")}`,
    [epoch, limit],
  );
}
