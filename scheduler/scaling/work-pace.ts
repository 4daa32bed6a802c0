/**
 * How long a warm worker takes for a generated frame, from what workers did: seconds in which they had jobs, over the frames
 * that came out. Batches make a full worker faster by the frame than one with a single rollout, and what is decided by it is
 * how long a backlog takes; so times at which work was waiting count, and others only until there are such. Pure.
 */

export interface WorkPace {
  readonly any: Measured;
  /** While work waited, so that workers were as full as they get. */
  readonly full: Measured;
}

interface Measured {
  /** Of workers with at least one job. */
  readonly busy_s: number;
  readonly frames: number;
  readonly samples: number;
}

const NOTHING: Measured = { busy_s: 0, frames: 0, samples: 0 };
export const NOT_MEASURED: WorkPace = { any: NOTHING, full: NOTHING };

/** What is measured counts half after so many further samples: a change of traffic or machine is believed after some. */
const HALF_LIFE_SAMPLES = 64;
/** Fewer say little: the beginning of a burst has seconds and no frames yet. */
const FULL_SAMPLES_MIN = 16;

export function withMeasured(pace: WorkPace, measured: Measured, wasFull: boolean): WorkPace {
  return { any: faded(pace.any, measured), full: wasFull ? faded(pace.full, measured) : pace.full };
}

function faded(before: Measured, measured: Measured): Measured {
  const kept = 2 ** -(measured.samples / HALF_LIFE_SAMPLES);
  return {
    busy_s: before.busy_s * kept + measured.busy_s,
    frames: before.frames * kept + measured.frames,
    samples: before.samples * kept + measured.samples,
  };
}

const best = ({ any, full }: WorkPace): Measured => (full.samples >= FULL_SAMPLES_MIN ? full : any);

/** Seconds of a worker; `expected` until a whole sample came out, and where the measurement can be none. */
export function secondsPerFrame(pace: WorkPace, expected: number): number {
  const { busy_s, frames, samples } = best(pace);
  return samples >= 1 && busy_s > 0 && frames > 0 ? busy_s / frames : expected;
}

/** Of a rollout as long as those that came out lately; null before the first. */
export function secondsPerSample(pace: WorkPace): number | null {
  const { busy_s, samples } = best(pace);
  return samples >= 1 && busy_s > 0 ? busy_s / samples : null;
}
