/** How fast the realtime lane has been, from what is stored: true percentiles, not estimates from buckets. */
import type { Sql } from "#platform/database.ts";

interface Percentiles {
  /** Null while there is nothing to measure. */
  readonly p50: number | null;
  readonly p99: number | null;
  readonly count: number;
}

export interface Latency {
  /** First forward to last decoded frame. */
  readonly engine_wall_ms: Percentiles;
  /** Accepted to settled: waiting, a cold start, encoding. */
  readonly request_ms: Percentiles;
}

const WINDOW_MS = 24 * 3_600_000;
/** Anybody may ask every few seconds, without a key. */
const LATEST_MAX = 10_000;

/**
 * Of the rollouts of that model that somebody waited for and that succeeded in the last 24 hours, the latest `latestMax` of
 * them. What is bulk waits by design: a night's dataset would say nothing of what a planner meets.
 */
export async function latencyOf(sql: Sql, model: string, now: Date, latestMax = LATEST_MAX): Promise<Latency> {
  const [row] = await sql.query<{
    engine: readonly [number, number] | null;
    request: readonly [number, number] | null;
    count: number;
  }>(
    `SELECT percentile_disc(ARRAY[0.5, 0.99]) WITHIN GROUP (
              ORDER BY (result #>> '{timings,engine_wall_ms}')::float8) AS engine,
            percentile_disc(ARRAY[0.5, 0.99]) WITHIN GROUP (
              ORDER BY extract(epoch FROM finished_at - created_at)::float8 * 1000) AS request,
            count(*)::int AS count
       FROM (SELECT result, finished_at, created_at FROM rollouts
              WHERE model = $1 AND lane = 'realtime' AND status = 'succeeded' AND finished_at > $2 ORDER BY finished_at DESC LIMIT $3) AS latest`,
    [model, new Date(now.getTime() - WINDOW_MS), latestMax],
  );
  const percentiles = (values: readonly [number, number] | null | undefined): Percentiles => ({
    p50: values?.[0] ?? null,
    p99: values?.[1] ?? null,
    count: row?.count ?? 0,
  });
  return { engine_wall_ms: percentiles(row?.engine), request_ms: percentiles(row?.request) };
}
