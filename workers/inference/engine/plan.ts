/**
 * Decides the next forward, from plain data. First come, first served, with one twist: short stages go first. A
 * sample that has to be encoded or decoded is brought to its denoising before the others take their next step, so
 * that the expensive forward is shared by as many as possible, whatever step, seed, chunk or prompt each is at.
 * Nobody starves: encoding and decoding happen a fixed number of times between denoising steps, the number of live
 * samples is limited, and within a stage the oldest always has its place.
 */
const STAGES_SHORTEST_FIRST = ["encode", "decode", "denoise"] as const;
export type Stage = (typeof STAGES_SHORTEST_FIRST)[number];

/** What the plan has to know of a live sample. */
export interface Plannable {
  readonly stage: Stage;
  /** Rows it takes in a forward of its stage: 2 where guidance needs the unconditional pass as well. */
  readonly rows: number;
  /** An engine fault has hit it before: it shares a forward with nobody. */
  readonly alone: boolean;
}

export interface Forward<S> {
  readonly stage: Stage;
  readonly samples: readonly S[];
}

export interface RowBudget {
  /** Takes the rows and says true, or leaves the budget as it is and says false. */
  tryAdd(rows: number): boolean;
}

/** A forward holds at most `rowsMax` rows, but always one sample: else a guided one could never run where rowsMax is 1. */
export function createRowBudget(rowsMax: number): RowBudget {
  let used = 0;
  return {
    tryAdd(rows) {
      if (used > 0 && used + rows > rowsMax) return false;
      used += rows;
      return true;
    },
  };
}

/** `live` in order of arrival. Null when there is nothing to do. */
export function planForward<S extends Plannable>(live: readonly S[], rowsMax: number): Forward<S> | null {
  const [oldest] = live;
  if (!oldest) return null;
  if (oldest.alone) return { stage: oldest.stage, samples: [oldest] };
  // An alone sample waits until it is the oldest; those who came before it finish first.
  const sharing = live.filter((sample) => !sample.alone);
  const stage = STAGES_SHORTEST_FIRST.find((stage) => sharing.some((sample) => sample.stage === stage));
  if (stage === undefined) return null;
  const budget = createRowBudget(rowsMax);
  return { stage, samples: sharing.filter((sample) => sample.stage === stage && budget.tryAdd(sample.rows)) };
}
