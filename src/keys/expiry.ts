/** When a key ends, as people write it. */

/** Beyond this a typo is likelier than a plan. */
const DAYS_MAX = 3_650;
const DAY_MS = 86_400_000;
const DATE = /^\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}(:\d{2}(\.\d{1,3})?)?(Z|[+-]\d{2}:\d{2}))?$/;

/**
 * `30d` from now, or an ISO date (its first moment in UTC) or time with its zone. Throws RangeError that says what was
 * expected, also for a time that is past or further away than ten years.
 */
export function parseExpiry(text: string, nowMs: number): Date {
  const days = /^(\d{1,5})d$/.exec(text)?.[1];
  const atMs = days === undefined ? momentMs(text) : nowMs + Number(days) * DAY_MS;
  if (!Number.isFinite(atMs)) {
    throw new RangeError(`expected days from now such as 30d, or a date such as 2030-12-31 or 2030-12-31T18:00Z`);
  }
  if (atMs <= nowMs) throw new RangeError(`expected a time to come, got ${new Date(atMs).toISOString()}`);
  if (atMs > nowMs + DAYS_MAX * DAY_MS) throw new RangeError(`expected at most ${DAYS_MAX} days from now`);
  return new Date(atMs);
}

/** Epoch ms of a date (its first moment in UTC) or time with its zone; NaN for other text, and for a day that its month does not have. */
export function momentMs(text: string): number {
  if (!DATE.test(text)) return Number.NaN;
  const day = text.slice(0, 10);
  const midnight = new Date(`${day}T00:00:00Z`); // moves such a day into the next month
  return !Number.isNaN(midnight.getTime()) && midnight.toISOString().startsWith(day) ? Date.parse(text) : Number.NaN;
}
