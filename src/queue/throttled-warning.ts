import type { Log } from "#platform/log.ts";

/** While a backend is away BullMQ reports an error for every retry of every worker; one line in this time is enough. */
const QUIET_MS = 5_000;

/** Logs the first error at once, then one line per QUIET_MS that says how many it stands for. */
export function throttledWarning(log: Log, message: string): (error: Error) => void {
  let quietUntil = 0;
  let unsaid = 0;
  return (error) => {
    unsaid += 1;
    const now = performance.now();
    if (now < quietUntil) return;
    quietUntil = now + QUIET_MS;
    log.warn({ err: error, count: unsaid }, message);
    unsaid = 0;
  };
}
