/** How fast a model's rollouts come out at present, and when it is worth to look again at one that waits. */
import type { Sql } from "#platform/database.ts";

const WINDOW_MS = 60_000;
/** Ends that are counted; at more a second than this divided by the window, the beginning of the window moves up. */
const ENDS_MAX = 500;
/** A rate over less than this says little: two ends in the same moment are no thousand a second. */
const SPAN_MS_MIN = 5_000;

/** Rollouts of that model a second, over the last minute at most; 0 when none came out in it. */
export async function paceOf(sql: Sql, model: string): Promise<number> {
  const [row] = await sql.query<{ ends: number; span_ms: number | null }>(
    `SELECT count(*)::int AS ends, (extract(epoch FROM now() - min(finished_at)) * 1000)::float8 AS span_ms
       FROM (SELECT finished_at FROM rollouts
              WHERE finished_at > now() - $2::float8 * interval '1 ms' AND model = $1 AND status IN ('succeeded', 'failed')
              ORDER BY finished_at DESC LIMIT $3) AS recent`,
    [model, WINDOW_MS, ENDS_MAX],
  );
  if (!row || row.span_ms === null) return 0;
  return (row.ends * 1000) / Math.max(SPAN_MS_MIN, row.span_ms);
}

export interface Waiting {
  /** In the backlog, 1 is next; null once it is dispatched. */
  readonly position: number | null;
  /** Until it begins: see expectedStartS; null where that is not known. */
  readonly starts_in_s: number | null;
  /** What is left of it by its worker's pace, in seconds, when it runs: 0 while that is not known; null when it waits. */
  readonly running_s: number | null;
  /** See paceOf. */
  readonly per_second: number;
  /** What the start of a worker takes, where none is warm; else 0. */
  readonly cold_start_s: number;
}

/** What runs is mostly done within seconds. */
const RETRY_AFTER_S_MIN = 1;
/** A pace may change, and a minute more or less is nothing to whoever waits for longer. */
const RETRY_AFTER_S_MAX = 60;
/** Where nothing came out lately and a worker is warm: about what one rollout takes. */
const SECONDS_EACH_DEFAULT = 3;

/** Whole seconds after which it may have finished, from what is ahead of it; within a second and a minute. */
export function retryAfterS({ position, starts_in_s, running_s, per_second, cold_start_s }: Waiting): number {
  const secondsEach = per_second > 0 ? 1 / per_second : SECONDS_EACH_DEFAULT;
  const ended = starts_in_s === null ? cold_start_s + (position ?? 1) * secondsEach : starts_in_s + secondsEach;
  const expected = running_s ?? ended;
  return Math.min(RETRY_AFTER_S_MAX, Math.max(RETRY_AFTER_S_MIN, Math.ceil(expected)));
}
