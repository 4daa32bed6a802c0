/**
 * What goes through, of all customers together: who waits, what runs, how fast it comes out, what was refunded and why. For an
 * operator who looks on; each statement reads a bounded number of rows whatever the table holds.
 */
import type { CustomerId, RolloutId } from "#contract/ids.ts";
import type { Mils } from "#contract/mils.ts";
import type { Lane, RolloutRoute, RolloutStatus } from "#contract/rollout.ts";
import type { Sql } from "#platform/database.ts";

/** A backlog is counted so far; one that is longer is "more than". */
export const BACKLOG_COUNTED_MAX = 100_000;
const CUSTOMERS_SHOWN = 10;

export interface WaitingInLane {
  readonly model: string;
  readonly lane: Lane;
  readonly rollouts: number;
  readonly samples: number;
  readonly frames: number;
  /** Seconds since the first of them came. */
  readonly oldest_s: number;
}

export interface WaitingCustomer {
  readonly customer_id: CustomerId;
  readonly email: string | null;
  readonly signup_email: string | null;
  readonly realtime: number;
  readonly bulk: number;
  readonly frames: number;
  readonly oldest_s: number;
}

export interface Backlog {
  readonly rollouts: number;
  readonly lanes: readonly WaitingInLane[];
  readonly customers: number;
  /** Those with the most frames. */
  readonly largest: readonly WaitingCustomer[];
}

/** What is queued and not dispatched. */
export async function readBacklogByCustomer(sql: Sql, countedMax = BACKLOG_COUNTED_MAX): Promise<Backlog> {
  const [row] = await sql.query<Backlog>(
    `WITH queued AS MATERIALIZED (
       SELECT model, lane, customer_id, k, frames, created_at FROM rollouts WHERE status = 'queued' LIMIT $1
     ),
     customers_waiting AS MATERIALIZED (
       SELECT customer_id, count(*) FILTER (WHERE lane = 'realtime')::int AS realtime,
              count(*) FILTER (WHERE lane = 'bulk')::int AS bulk, sum(frames)::float8 AS frames,
              extract(epoch FROM now() - min(created_at))::float8 AS oldest_s
         FROM queued GROUP BY customer_id
     ),
     largest AS (
       SELECT w.customer_id, c.email, c.signup_email, w.realtime, w.bulk, w.frames, w.oldest_s
         FROM (SELECT * FROM customers_waiting ORDER BY frames DESC, customer_id LIMIT $2) w
         JOIN customers c ON c.id = w.customer_id
     ),
     lanes AS (
       SELECT model, lane, count(*)::int AS rollouts, sum(k)::int AS samples, sum(frames)::float8 AS frames,
              extract(epoch FROM now() - min(created_at))::float8 AS oldest_s
         FROM queued GROUP BY model, lane
     )
     SELECT (SELECT count(*)::int FROM queued) AS rollouts,
            (SELECT count(*)::int FROM customers_waiting) AS customers,
            coalesce((SELECT json_agg(lanes ORDER BY model, lane DESC) FROM lanes), '[]') AS lanes,
            coalesce((SELECT json_agg(largest ORDER BY frames DESC, customer_id) FROM largest), '[]') AS largest`,
    [countedMax, CUSTOMERS_SHOWN],
  );
  if (!row) throw new Error("an aggregate gives one row");
  return row;
}

export interface Dispatched {
  readonly model: string;
  readonly lane: Lane;
  readonly rollouts: number;
  readonly samples: number;
}

/** What is dispatched and not finished: in the ready queues or at a worker. The queues are shallow, so there are few. */
export function readDispatchedByLane(sql: Sql): Promise<Dispatched[]> {
  return sql.query<Dispatched>(
    `SELECT model, lane, count(*)::int AS rollouts, sum(k)::int AS samples
       FROM rollouts WHERE status = 'dispatched' GROUP BY model, lane ORDER BY model, lane DESC`,
  );
}

/** Milliseconds, true percentiles; null where nothing was measured. */
export interface Percentiles {
  readonly p50: number | null;
  readonly p99: number | null;
}

export interface LaneEnds {
  readonly lane: Lane;
  readonly ended: number;
  readonly succeeded: number;
  /** Seconds since the latest one. */
  readonly last_s: number;
  /** Of those that succeeded: accepted to settled, waiting and a cold start included. */
  readonly answer_ms: Percentiles;
  /** First forward to last decoded frame. */
  readonly engine_ms: Percentiles;
}

export interface Traffic {
  readonly window_s: number;
  /** Of all models together. */
  readonly lanes: readonly LaneEnds[];
  readonly ends: readonly (LaneEnds & { readonly model: string })[];
  /** Delivered over the latest minute. */
  readonly frames_per_s: number;
  readonly rollouts_per_s: number;
}

const TRAFFIC_WINDOW_S = 300;
const RATE_WINDOW_S = 60;
/** Ends that are looked at; where more came out in the window, it begins later. */
export const ENDS_MAX = 5_000;
/** A rate over less says little: two ends in the same moment are no thousand a second. */
const SPAN_S_MIN = 5;

interface EndsRow {
  /** Null: all of them. */
  readonly model: string | null;
  readonly lane: Lane;
  readonly ended: number;
  readonly succeeded: number;
  readonly frames_lately: number;
  readonly ended_lately: number;
  readonly first_s: number;
  readonly last_s: number;
  readonly answer: readonly [number, number] | null;
  readonly engine: readonly [number, number] | null;
}

/** What came out of late, by model and lane. */
export async function readTraffic(sql: Sql, endsMax = ENDS_MAX): Promise<Traffic> {
  const rows = await sql.query<EndsRow>(
    `SELECT model, lane, count(*)::int AS ended, count(*) FILTER (WHERE status = 'succeeded')::int AS succeeded,
            coalesce(sum(frames_delivered) FILTER (WHERE finished_at > now() - $2 * interval '1 s'), 0)::float8 AS frames_lately,
            count(*) FILTER (WHERE finished_at > now() - $2 * interval '1 s')::int AS ended_lately,
            extract(epoch FROM now() - min(finished_at))::float8 AS first_s,
            extract(epoch FROM now() - max(finished_at))::float8 AS last_s,
            percentile_disc(ARRAY[0.5, 0.99]) WITHIN GROUP (
              ORDER BY extract(epoch FROM finished_at - created_at)::float8 * 1000)
              FILTER (WHERE status = 'succeeded') AS answer,
            percentile_disc(ARRAY[0.5, 0.99]) WITHIN GROUP (
              ORDER BY (result #>> '{timings,engine_wall_ms}')::float8) FILTER (WHERE status = 'succeeded') AS engine
       FROM (SELECT model, lane, status, frames_delivered, created_at, finished_at, result FROM rollouts
              WHERE finished_at IS NOT NULL AND finished_at > now() - $1 * interval '1 s'
              ORDER BY finished_at DESC LIMIT $3) AS latest
      GROUP BY GROUPING SETS ((lane), (model, lane)) ORDER BY model, lane DESC`,
    [TRAFFIC_WINDOW_S, RATE_WINDOW_S, endsMax],
  );
  const lanes = rows.filter(({ model }) => model === null);
  const sum = (of: (row: EndsRow) => number): number => lanes.reduce((total, row) => total + of(row), 0);
  const whole = sum((row) => row.ended) < endsMax;
  const span = whole ? TRAFFIC_WINDOW_S : Math.max(...lanes.map(({ first_s }) => first_s));
  const rateSpan = Math.max(SPAN_S_MIN, Math.min(RATE_WINDOW_S, span));
  return {
    window_s: span,
    lanes: lanes.map(laneEnds),
    ends: rows.flatMap((row) => (row.model === null ? [] : { model: row.model, ...laneEnds(row) })),
    frames_per_s: sum((row) => row.frames_lately) / rateSpan,
    rollouts_per_s: sum((row) => row.ended_lately) / rateSpan,
  };
}

const laneEnds = ({ lane, ended, succeeded, last_s, answer, engine }: EndsRow): LaneEnds => ({
  lane,
  ended,
  succeeded,
  last_s,
  answer_ms: percentiles(answer),
  engine_ms: percentiles(engine),
});

const percentiles = (values: readonly [number, number] | null): Percentiles => ({
  p50: values?.[0] ?? null,
  p99: values?.[1] ?? null,
});

export interface Refund {
  readonly rollout_id: RolloutId;
  readonly customer_id: CustomerId;
  readonly email: string | null;
  readonly signup_email: string | null;
  readonly model: string;
  readonly lane: Lane;
  readonly route: RolloutRoute;
  readonly status: RolloutStatus;
  readonly error_code: string | null;
  /** Its beginning. */
  readonly error_message: string | null;
  readonly frames: number;
  readonly frames_delivered: number;
  readonly refunded_mils: Mils;
  readonly finished_at: Date;
}

const MESSAGE_CHARS = 300;

/** Latest first. */
export function readRefunds(sql: Sql, limit: number): Promise<Refund[]> {
  return sql.query<Refund>(
    `SELECT r.id AS rollout_id, r.customer_id, c.email, c.signup_email, r.model, r.lane, r.route, r.status, r.error_code,
            left(r.error_message, $2) AS error_message, r.frames, r.frames_delivered, r.refunded_mils, r.finished_at
       FROM (SELECT * FROM rollouts WHERE refunded_mils > 0 ORDER BY finished_at DESC LIMIT $1) r
       JOIN customers c ON c.id = r.customer_id
      ORDER BY r.finished_at DESC`,
    [limit, MESSAGE_CHARS],
  );
}

/** How many, and how much, for one reason: its error's code, or how it ended. */
export interface RefundSum {
  readonly why: string;
  readonly rollouts: number;
  readonly refunded_mils: Mils;
}

export const REFUNDS_SUMMED_MAX = 10_000;

/** Of the latest day; where there are more than `max`, of the latest of them. The largest sums first. */
export function sumRefunds(sql: Sql, max = REFUNDS_SUMMED_MAX): Promise<RefundSum[]> {
  return sql.query<RefundSum>(
    `SELECT coalesce(error_code, status) AS why, count(*)::int AS rollouts, sum(refunded_mils)::bigint AS refunded_mils
       FROM (SELECT error_code, status, refunded_mils FROM rollouts
              WHERE refunded_mils > 0 AND finished_at > now() - interval '1 day'
              ORDER BY finished_at DESC LIMIT $1) AS latest
      GROUP BY 1 ORDER BY 3 DESC, 1`,
    [max],
  );
}
