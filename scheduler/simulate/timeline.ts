/** What a plot shows of a run: the most of each, by slices of the time. */

export interface Timeline {
  readonly slice_s: number;
  readonly workers: Float64Array;
  readonly busy: Float64Array;
  readonly waiting: Float64Array;
  note(atS: number, workers: number, busy: number, waiting: number): void;
}

/** More than a plot has pixels for each. */
const SLICES = 600;

export function createTimeline(horizonS: number): Timeline {
  const slice_s = Math.max(1, horizonS) / SLICES;
  const series = {
    workers: new Float64Array(SLICES),
    busy: new Float64Array(SLICES),
    waiting: new Float64Array(SLICES),
  };
  return {
    slice_s,
    ...series,
    note(atS, workers, busy, waiting) {
      const slice = Math.floor(atS / slice_s);
      if (slice >= SLICES) return; // what is left after the last arrival's slice is no part of the picture
      series.workers[slice] = Math.max(series.workers[slice] ?? 0, workers);
      series.busy[slice] = Math.max(series.busy[slice] ?? 0, busy);
      series.waiting[slice] = Math.max(series.waiting[slice] ?? 0, waiting);
    },
  };
}
