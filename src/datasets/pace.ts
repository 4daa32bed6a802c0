/**
 * How fast a dataset's rows end, lately. Two numbers beside the dataset say it: rows that ended, and the seconds in which
 * they did, both fading by half in HALF_LIFE_S. Their quotient is a rate that is right from the first rows on, follows a
 * change within minutes, and falls while nothing ends; it costs the same for a hundred rows and a hundred thousand.
 */
import type { Dataset } from "./dataset.ts";

export type Pace = Pick<Dataset, "pace_rows" | "pace_s" | "pace_at">;

const HALF_LIFE_S = 60;
/** The integral of the fading, in seconds: what `pace_s` goes towards. */
const FULL_S = HALF_LIFE_S / Math.LN2;

/** From now on; what was before (a pause, another run) does not count. */
export const newPace = (nowMs: number): Pace => ({ pace_rows: 0, pace_s: 0, pace_at: new Date(nowMs) });

/** As of `nowMs`, when `ended` rows more have ended. */
export function nextPace(pace: Pace, ended: number, nowMs: number): Pace {
  if (pace.pace_at === null) return { ...newPace(nowMs), pace_rows: ended };
  // Clocks of two machines may differ: time never goes back.
  const seconds = Math.max(0, (nowMs - pace.pace_at.getTime()) / 1000);
  const kept = 2 ** (-seconds / HALF_LIFE_S);
  return {
    pace_rows: pace.pace_rows * kept + ended,
    pace_s: pace.pace_s * kept + FULL_S * (1 - kept),
    pace_at: new Date(Math.max(nowMs, pace.pace_at.getTime())),
  };
}

/** Below this, one row more or less says more about chance than about the rate. */
const SHORTEST_S = 0.5;

export function rowsPerSecond(pace: Pace, nowMs: number): number {
  const now = nextPace(pace, 0, nowMs);
  return now.pace_s < SHORTEST_S ? 0 : now.pace_rows / now.pace_s;
}

/** Rows in a minute below which nobody can say when the rest will be done. */
const SLOWEST_ROWS_PER_MIN = 0.01;

/** Both null unless it runs and rows have ended lately. */
export function paceOf(
  dataset: Pace & Pick<Dataset, "state" | "rows_pending" | "rows_running">,
  nowMs: number,
): { readonly rows_per_min: number | null; readonly eta_s: number | null } {
  const rowsPerMin = dataset.state === "running" ? 60 * rowsPerSecond(dataset, nowMs) : 0;
  if (rowsPerMin < SLOWEST_ROWS_PER_MIN) return { rows_per_min: null, eta_s: null };
  const left = dataset.rows_pending + dataset.rows_running;
  return { rows_per_min: Math.round(rowsPerMin * 100) / 100, eta_s: Math.ceil((60 * left) / rowsPerMin) };
}
