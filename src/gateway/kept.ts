/** Answers that many ask for, made once for all of them. */
import type { Clock } from "#platform/clock.ts";

/** What takes long is kept for so many times as long: it keeps at most one connection in so many busy. */
const KEPT_PER_COST = 20;

/**
 * One load at a time, its result kept for `keptMs` from its beginning on, and at least for `perCost` times what it took; a
 * failed one is not kept. So ten who ask all the time cost as much as one, and a slow database is not asked faster than it
 * answers. `perCost` is 0 where all that it takes is kept already.
 */
export function keptFor<T>(
  keptMs: number,
  clock: Clock,
  load: () => Promise<T>,
  perCost = KEPT_PER_COST,
): () => Promise<T> {
  let kept: { readonly value: Promise<T>; readonly startedMs: number; readonly untilMs: () => number } | undefined;
  return () => {
    const startedMs = clock.now();
    // A clock that was set back must not keep an old answer until it is where it was.
    if (kept !== undefined && startedMs >= kept.startedMs && startedMs < kept.untilMs()) return kept.value;
    let untilMs = Number.POSITIVE_INFINITY;
    const value = load();
    const own = { value, startedMs, untilMs: () => untilMs };
    kept = own;
    value.then(
      () => {
        untilMs = startedMs + Math.max(keptMs, (clock.now() - startedMs) * (perCost + 1));
      },
      () => {
        if (kept === own) kept = undefined;
      },
    );
    return value;
  };
}
