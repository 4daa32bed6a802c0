/**
 * How long a worker of a bundle takes from its start to ready. The manifest says what to expect; what was measured on this
 * machine takes over. Pure: the shell keeps the measurements.
 */

/** The manifest's word counts as much as two starts, so that one odd first start changes nothing, and three agree on their own. */
const MANIFEST_COUNTS_AS = 2;
/** Starts looked at, the latest ones: a machine or a bundle's cache that changed is believed after eight of them. */
const MEASUREMENTS_MAX = 15;

/**
 * Seconds: the median of the manifest's `cold_start_s` and the latest measured starts (oldest first). A median, because a
 * start beside a full disk or a cold page cache takes many times as long and says nothing of the next one: as long as
 * fewer than half of what counts is off, the estimate lies within the others. Only starts that ended ready are
 * measurements. Throws RangeError on a time that is none.
 */
export function estimateColdStart(manifestS: number, measuredS: readonly number[]): number {
  const latest = measuredS.slice(-MEASUREMENTS_MAX);
  const values = [...Array.from({ length: MANIFEST_COUNTS_AS }, () => manifestS), ...latest];
  for (const value of values) {
    if (!Number.isFinite(value) || value < 0) throw new RangeError(`expected seconds of a cold start, got ${value}`);
  }
  const sorted = values.toSorted((a, b) => a - b);
  const [low, high] = [sorted[Math.floor((sorted.length - 1) / 2)], sorted[Math.floor(sorted.length / 2)]];
  return ((low ?? manifestS) + (high ?? manifestS)) / 2;
}
