/** How long somebody has had at least one job. */
import type { Clock } from "./clock.ts";

export interface BusyTime {
  /** So many jobs from now on. */
  set(count: number): void;
  /** Milliseconds, until now. */
  ms(): number;
}

export function createBusyTime(clock: Clock): BusyTime {
  let totalMs = 0;
  let sinceMs: number | null = null;
  const passedMs = (): number => (sinceMs === null ? 0 : Math.max(0, clock.now() - sinceMs));
  return {
    set(count) {
      if (count > 0 === (sinceMs !== null)) return;
      totalMs += passedMs();
      sinceMs = count > 0 ? clock.now() : null;
    },
    ms: () => totalMs + passedMs(),
  };
}
