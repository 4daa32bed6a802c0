/**
 * The promise about prices, as a function of rows and time: nobody pays more than they were told 30 days before. A rise
 * is judged against what each customer would otherwise have paid at that moment, so ends of a committed price count,
 * and so does a change that was announced and is withdrawn.
 */

/** A row of `prices`; rows are in the order in which they were recorded. */
export interface PriceRow {
  /** Null: the list's. */
  readonly customer_id: string | null;
  /** Null ends the customer's own price: the list's is theirs again. */
  readonly mils_per_frame: number | null;
  /** Epoch ms; -Infinity for the first list price. */
  readonly effective_ms: number;
  readonly recorded_ms: number;
  /** Whether it was recorded as an exception from the notice. */
  readonly overridden: boolean;
}

export const NOTICE_MS = 30 * 86_400_000;

export interface ShortNotice {
  /** Who would pay more; null is everybody without a price of their own. */
  readonly customer_id: string | null;
  /** Epoch ms. */
  readonly at_ms: number;
  /** Mils a frame that they would have paid, and those that they would pay instead. */
  readonly from: number;
  readonly to: number;
  /** From when on the same change is allowed, if it is recorded now. */
  readonly earliest_ms: number;
}

/** Null when everybody who would pay more is told in time. `added` was recorded now, after all of `rows`. */
export function findShortNotice(rows: readonly PriceRow[], added: PriceRow): ShortNotice | null {
  const concerned = concernedBy(rows, added);
  const problem = firstShortNotice(concerned, added);
  if (problem === null) return null;
  const noticeEnds_ms = added.recorded_ms + NOTICE_MS;
  const earliest_ms =
    datesIn(rows, Math.max(added.effective_ms, added.recorded_ms), noticeEnds_ms).find(
      (effective_ms) => firstShortNotice(concerned, { ...added, effective_ms }) === null,
    ) ?? noticeEnds_ms; // from then on nothing is in the way
  return { ...problem, earliest_ms };
}

/** Whose price it may change, with the rows that decide it until now. */
interface Concerned {
  readonly customer_id: string | null;
  readonly told: readonly PriceRow[];
}

/** A change of the list concerns everybody; of those with rows of their own, each may be concerned in another way. */
function concernedBy(rows: readonly PriceRow[], added: PriceRow): Concerned[] {
  const own = Map.groupBy(rows, ({ customer_id }) => customer_id);
  const list = own.get(null) ?? [];
  const customers = added.customer_id === null ? new Set([null, ...own.keys()]) : [added.customer_id];
  return [...customers].map((customer_id) => ({
    customer_id,
    told: customer_id === null ? list : [...list, ...(own.get(customer_id) ?? [])],
  }));
}

type Problem = Omit<ShortNotice, "earliest_ms">;

/** Whoever it finds is moved to the front of `concerned`: who is in the way of one date is likely in the way of the next. */
function firstShortNotice(concerned: Concerned[], added: PriceRow): Problem | null {
  for (const [index, one] of concerned.entries()) {
    const problem = shortNotice(one, added);
    if (problem === null) continue;
    concerned.unshift(...concerned.splice(index, 1));
    return problem;
  }
  return null;
}

function shortNotice({ customer_id, told }: Concerned, added: PriceRow): Problem | null {
  const now = added.recorded_ms;
  const after = [...told, added];
  for (const at_ms of datesIn(after, now, now + NOTICE_MS)) {
    const [from, to] = [priceAt(told, customer_id, at_ms), priceAt(after, customer_id, at_ms)];
    if (to > from) return { customer_id, at_ms, from, to };
    // A lowering before a later row can make a rise of that row, which was none when it was recorded.
    const before = priceBefore(after, customer_id, at_ms);
    if (to > before && !toldInTime(after, customer_id, at_ms) && to - before > rise(told, customer_id, at_ms)) {
      return { customer_id, at_ms, from: before, to };
    }
  }
  return null;
}

/** Dates on which something takes effect, from `from` until before `until`, in order. */
function datesIn(rows: readonly PriceRow[], from: number, until: number): number[] {
  const dates = rows.map(({ effective_ms }) => effective_ms).filter((at) => at >= from && at < until);
  return [...new Set(dates)].sort((a, b) => a - b);
}

const rise = (rows: readonly PriceRow[], customer: string | null, at_ms: number): number =>
  priceAt(rows, customer, at_ms) - priceBefore(rows, customer, at_ms);

/** Whether some row that takes effect then was recorded in time, or openly without. */
function toldInTime(rows: readonly PriceRow[], customer: string | null, at_ms: number): boolean {
  const row = rowInForce(rows, customer, at_ms);
  return row.overridden || row.recorded_ms <= at_ms - NOTICE_MS;
}

/** Mils a frame; the same rule as the SQL function `price_in_force` (test/billing/prices.test.ts compares them). */
export function priceAt(rows: readonly PriceRow[], customer: string | null, at_ms: number): number {
  const own = customer === null ? undefined : latest(rows, customer, (row) => row.effective_ms <= at_ms);
  const price = own?.mils_per_frame ?? latest(rows, null, (row) => row.effective_ms <= at_ms)?.mils_per_frame;
  if (price == null) throw new Error("no price is in force: the list price is missing");
  return price;
}

/** What was in force until then. */
function priceBefore(rows: readonly PriceRow[], customer: string | null, at_ms: number): number {
  return priceAt(
    rows.filter((row) => row.effective_ms < at_ms),
    customer,
    at_ms,
  );
}

/** The row that the price then comes from, or that brought the list's back. */
function rowInForce(rows: readonly PriceRow[], customer: string | null, at_ms: number): PriceRow {
  const own = customer === null ? undefined : latest(rows, customer, (row) => row.effective_ms <= at_ms);
  const list = latest(rows, null, (row) => row.effective_ms <= at_ms);
  const row = own !== undefined && (own.mils_per_frame !== null || own.effective_ms === at_ms) ? own : list;
  if (!row) throw new Error("no price is in force: the list price is missing");
  return row;
}

/** The latest date wins, of one date the row recorded last. */
function latest(
  rows: readonly PriceRow[],
  customer: string | null,
  counts: (row: PriceRow) => boolean,
): PriceRow | undefined {
  return rows
    .filter((row) => row.customer_id === customer && counts(row))
    .reduce<PriceRow | undefined>(
      (best, row) => (best && best.effective_ms > row.effective_ms ? best : row),
      undefined,
    );
}

/** Changes of what that customer pays after `now_ms`, as they stand: the notice. */
export function changesAfter(
  rows: readonly PriceRow[],
  customer: string | null,
  now_ms: number,
): { readonly mils_per_frame: number; readonly effective_ms: number }[] {
  return datesIn(rows, now_ms + 1, Infinity).flatMap((effective_ms) => {
    const mils_per_frame = priceAt(rows, customer, effective_ms);
    return mils_per_frame === priceBefore(rows, customer, effective_ms) ? [] : [{ mils_per_frame, effective_ms }];
  });
}
