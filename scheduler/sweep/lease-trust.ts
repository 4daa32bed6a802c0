/**
 * Whether a stale lease means a dead gateway. Right after our own start, an outage of the database or a machine that
 * slept, every lease looks stale, because nobody could renew one: then gateways first get a lease's time to do so.
 */
export interface LeaseTrust {
  /** At the start of a round: may leases be judged in it? */
  isSteady(nowMs: number): boolean;
  /** At the end of a round that did not fail. */
  roundEnded(nowMs: number): void;
}

/**
 * More than half a lease between two rounds, or within one, is an interruption: a lease renewed just before it may still
 * look alive.
 */
export function createLeaseTrust(leaseMs: number, startedMs: number): LeaseTrust {
  let steadySinceMs = startedMs;
  let begunMs = startedMs;
  let endedMs = startedMs;
  const lookForInterruption = (sinceMs: number, nowMs: number): void => {
    if (nowMs - sinceMs > leaseMs / 2) steadySinceMs = nowMs;
  };
  return {
    isSteady(nowMs) {
      lookForInterruption(endedMs, nowMs);
      begunMs = nowMs;
      return nowMs - steadySinceMs >= leaseMs;
    },
    roundEnded(nowMs) {
      lookForInterruption(begunMs, nowMs);
      endedMs = nowMs;
    },
  };
}
