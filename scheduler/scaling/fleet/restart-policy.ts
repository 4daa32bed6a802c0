/** When a worker that died is started again. Pure: the fleet keeps the count. */

const PAUSE_MS_MIN = 250;
const PAUSE_MS_MAX = 30_000;
/** A worker that was ready for this long died of something new: its slot starts counting afresh. */
const HEALTHY_AFTER_MS = 60_000;
/** From this many deaths in a row on it is a crash loop: nothing that waiting solves. */
const CRASH_LOOP_DEATHS = 3;

export interface Deaths {
  /** Deaths in a row, none of them after a healthy time. */
  readonly in_a_row: number;
}

export const NO_DEATHS: Deaths = { in_a_row: 0 };

/** `readyMs`: how long the worker had been ready, 0 when it never was. */
export function afterDeath(
  deaths: Deaths,
  readyMs: number,
): { readonly deaths: Deaths; readonly pause_ms: number; readonly crash_loop: boolean } {
  const inARow = readyMs >= HEALTHY_AFTER_MS ? 1 : deaths.in_a_row + 1;
  return {
    deaths: { in_a_row: inARow },
    pause_ms: Math.min(PAUSE_MS_MAX, PAUSE_MS_MIN * 2 ** (inARow - 1)),
    crash_loop: inARow >= CRASH_LOOP_DEATHS,
  };
}
