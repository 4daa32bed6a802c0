/** Prices are rows with a date they take effect on, never changed; the SQL function `price_in_force` picks one. */
import { ApiError } from "#contract/errors.ts";
import { assertLine, recordAction } from "#ledger/operator-actions.ts";
import type { Clock } from "#platform/clock.ts";
import type { Database, Sql } from "#platform/database.ts";

import { changesAfter, findShortNotice, NOTICE_MS, type PriceRow, type ShortNotice } from "./notice.ts";

/** Mils a frame now: the customer's own price where they have one in force, else the list's; null asks for the list's. */
export async function priceFor(sql: Sql, customerId: string | null): Promise<number> {
  const [row] = await sql.query<{ price: number | null }>(`SELECT price_in_force($1, now()) AS price`, [customerId]);
  if (row?.price == null) throw new Error("no price is in force: the list price is missing");
  return row.price;
}

export interface NewPrice {
  /** Null: the list's. */
  readonly customer_id: string | null;
  /** Null ends the customer's own price. */
  readonly mils_per_frame: number | null;
  /** Null: at once. */
  readonly effective_from: Date | null;
  /** Why; customers do not see it. */
  readonly note: string;
  readonly operator: string;
  /** Lets somebody pay more without the notice, for this reason, which is kept. */
  readonly override_reason: string | null;
}

/** Above what any frame could cost ($10); a slip of the hand must not become a charge. */
const MILS_PER_FRAME_MAX = 100_000;

/**
 * Throws ApiError(invalid_request) where the date is past, or where somebody would pay more than they were told 30 days
 * before (findShortNotice), with the earliest date, or where a price ends that nobody has. Without a clock the time is the database's, by which
 * rollouts are charged: the operator's machine may be off, and a date that is past there dates a price back.
 */
export async function setPrice(db: Database, price: NewPrice, clock?: Clock): Promise<{ effective_from: Date }> {
  assertSensible(price);
  return await db.transaction(async (tx) => {
    // One at a time, and each judged by all before it; readers go on.
    await tx.query("LOCK TABLE prices IN SHARE ROW EXCLUSIVE MODE");
    const now = clock ? clock.now() : await databaseNow(tx);
    const effective_from = price.effective_from ?? new Date(now);
    if (effective_from.getTime() < now) {
      throw new ApiError(
        "invalid_request",
        `a price cannot take effect in the past: expected a date after ${new Date(now).toISOString()}, ` +
          `got ${effective_from.toISOString()}`,
      );
    }
    const rows = await readRows(tx, price.customer_id);
    if (price.mils_per_frame === null && !hasOwnPrice(rows, price.customer_id, effective_from)) {
      throw new ApiError(
        "invalid_request",
        `${price.customer_id} has no price of their own at ${effective_from.toISOString()}: there is nothing to end`,
      );
    }
    const problem = findShortNotice(rows, {
      customer_id: price.customer_id,
      mils_per_frame: price.mils_per_frame,
      effective_ms: effective_from.getTime(),
      recorded_ms: now,
      overridden: false,
    });
    if (problem !== null && price.override_reason === null) throw tooSoon(problem);
    await insert(tx, price, effective_from, new Date(now), problem === null ? null : price.override_reason);
    return { effective_from };
  });
}

/** As `price_in_force` picks one: the latest of those that have begun, by when it was recorded. */
function hasOwnPrice(rows: readonly PriceRow[], customerId: string | null, at: Date): boolean {
  const [latest] = rows
    .filter(({ customer_id, effective_ms }) => customer_id === customerId && effective_ms <= at.getTime())
    .toReversed()
    .toSorted((a, b) => b.effective_ms - a.effective_ms);
  return latest !== undefined && latest.mils_per_frame !== null;
}

/** Not now(), when the transaction began: it may have waited for another since. */
async function databaseNow(tx: Sql): Promise<number> {
  const [row] = await tx.query<{ ms: number }>(
    "SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::float8 AS ms",
  );
  if (!row) throw new Error("the database does not tell the time");
  return row.ms;
}

async function insert(
  tx: Sql,
  { customer_id, mils_per_frame, note, operator }: NewPrice,
  effective_from: Date,
  recorded_at: Date,
  override_reason: string | null,
): Promise<void> {
  await tx.query(
    `INSERT INTO prices (customer_id, mils_per_frame, effective_from, recorded_at, note, operator, override_reason)
     VALUES ($1, $2, $3, $4, $5, $6, $7)`,
    [customer_id, mils_per_frame, effective_from, recorded_at, note, operator, override_reason],
  );
  await recordAction(tx, {
    operator,
    action: mils_per_frame === null ? "prices end" : "prices set",
    customer_id,
    reason: note,
    reference: null,
    details: { mils_per_frame, effective_from: effective_from.toISOString(), override_reason },
  });
}

function assertSensible({ customer_id, mils_per_frame, note, override_reason }: NewPrice): void {
  if (mils_per_frame === null && customer_id === null) {
    throw new ApiError("invalid_request", "the list price cannot end: expected a price");
  }
  if (
    mils_per_frame !== null &&
    !(Number.isInteger(mils_per_frame) && mils_per_frame >= 0 && mils_per_frame <= MILS_PER_FRAME_MAX)
  ) {
    throw new ApiError(
      "invalid_request",
      `expected a whole number of mils a frame from 0 to ${MILS_PER_FRAME_MAX}, got ${mils_per_frame}`,
    );
  }
  assertLine("a reason", note);
  if (override_reason !== null) assertLine("a reason", override_reason);
}

function tooSoon({ customer_id, at_ms, from, to, earliest_ms }: ShortNotice): ApiError {
  const who = customer_id ?? "a customer without a price of their own";
  return new ApiError(
    "invalid_request",
    `${who} would pay ${to} mils a frame instead of ${from} from ${iso(at_ms)}: a rise needs ${NOTICE_MS / 86_400_000} days' ` +
      `notice, so the earliest date for this change is ${iso(earliest_ms)} (or give a reason to override the notice)`,
  );
}

const iso = (ms: number): string => new Date(ms).toISOString();

/** What decides the prices of that customer, or of everybody (null), in the order of recording; a few rows each. */
function readRows(sql: Sql, customerId: string | null): Promise<PriceRow[]> {
  return sql.query<PriceRow>(
    // As numbers, because the first list price holds from -infinity on, which no Date can say.
    `SELECT customer_id, mils_per_frame, (extract(epoch FROM effective_from) * 1000)::float8 AS effective_ms,
            (extract(epoch FROM recorded_at) * 1000)::float8 AS recorded_ms, override_reason IS NOT NULL AS overridden
       FROM prices WHERE $1::text IS NULL OR customer_id IS NULL OR customer_id = $1 ORDER BY id`,
    [customerId],
  );
}

export interface ListedPrice {
  /** Null: the list's. */
  readonly customer_id: string | null;
  /** Null: the customer's own price ends. */
  readonly mils_per_frame: number | null;
  /** Null: from the beginning. */
  readonly effective_from: Date | null;
  readonly recorded_at: Date;
  readonly state: "past" | "in force" | "scheduled";
  readonly note: string;
  readonly operator: string;
  readonly override_reason: string | null;
}

/** The list's rows and, where a customer is named, theirs, by the date they take effect on. */
export function pricesOf(sql: Sql, customerId: string | null): Promise<ListedPrice[]> {
  return sql.query<ListedPrice>(
    `SELECT customer_id, mils_per_frame, nullif(effective_from, '-infinity') AS effective_from, recorded_at,
            CASE WHEN effective_from > now() THEN 'scheduled'
                 WHEN row_number() OVER (PARTITION BY customer_id, effective_from > now()
                                             ORDER BY prices.effective_from DESC, id DESC) = 1 THEN 'in force'
                 ELSE 'past' END AS state,
            note, operator, override_reason
       FROM prices WHERE customer_id IS NULL OR customer_id = $1
      ORDER BY customer_id NULLS FIRST, prices.effective_from, id`,
    [customerId],
  );
}

export interface PriceNotice {
  readonly mils_per_frame: number;
  readonly list_mils_per_frame: number;
  /** What this customer is going to pay, and from when: every change that is known now. */
  readonly changes: readonly { readonly mils_per_frame: number; readonly effective_from: Date }[];
}

/** What a customer may know of their prices. */
export async function noticeFor(sql: Sql, customerId: string, clock: Clock): Promise<PriceNotice> {
  const [rows, mils_per_frame, list_mils_per_frame] = await Promise.all([
    readRows(sql, customerId),
    priceFor(sql, customerId),
    priceFor(sql, null),
  ]);
  return {
    mils_per_frame,
    list_mils_per_frame,
    changes: changesAfter(rows, customerId, clock.now()).map(({ mils_per_frame, effective_ms }) => ({
      mils_per_frame,
      effective_from: new Date(effective_ms),
    })),
  };
}
