/** A customer whose entries lie in several months, and his statements as text. */
import type { CustomerId } from "#contract/ids.ts";
import { mils } from "#contract/mils.ts";
import { statementEntries, statementRanges } from "#ledger/statement.ts";
import { statementCsv, statementJson } from "#ledger/statement-text.ts";
import type { Database } from "#platform/database.ts";
import { newCustomer } from "#test/support/ledger.ts";

export const MONTHS = [
  ["2025-10", "2025-11"],
  ["2025-11", "2025-12"],
  ["2025-12", "2026-01"],
  ["2026-01", "2026-02"],
] as const;

/** Entries in October, November and January of both accounts, none in December. */
export async function customerOfSeveralMonths(db: Database): Promise<CustomerId> {
  const { customer_id: customer } = await newCustomer(db, mils(0));
  await post(db, customer, "2025-10-31T23:59:59.999999Z", 500);
  await post(db, customer, "2025-11-01T00:00:00Z", 20, { reference: "=HYPERLINK(1)", detail: `said "no, thanks"\r\n` });
  await post(db, customer, "2025-11-01T00:00:00Z", -70, { detail: "+1 · ünïcode · 'quoted'" });
  await post(db, customer, "2025-11-30T23:59:59.999999Z", -450, { detail: "'leading" });
  await post(db, customer, "2025-11-30T23:59:59.999999Z", 900, { account: "debt", detail: "@dispute" });
  await post(db, customer, "2026-01-01T00:00:00Z", -900, { account: "debt" });
  await post(db, customer, "2026-01-15T12:00:00Z", 2n ** 60n + 1n);
  return customer;
}

let posted = 0;

/** An entry of another time than now, as `post_ledger_entry` would have made it then. */
export async function post(
  db: Database,
  customerId: string,
  at: string,
  amount: number | bigint,
  { account = "balance", reference = `ref_${++posted}`, detail = "a payment" } = {},
): Promise<void> {
  const rows = await db.query(
    `WITH moved AS (
       UPDATE accounts SET balance_mils = balance_mils + $3, seq = seq + 1, prev_hash = head_hash, last_entry_at = $4,
              head_hash = ledger_hash(head_hash, customer_id, account, seq + 1, 'clawback', $3, balance_mils + $3, NULL, $5, $6, $4)
        WHERE customer_id = $1 AND account = $2 RETURNING *)
     INSERT INTO ledger_entries (customer_id, account, seq, kind, amount_mils, balance_after_mils, reference, detail, created_at, prev_hash, hash)
     SELECT customer_id, account, seq, 'clawback', $3, balance_mils, $5, $6, $4, prev_hash, head_hash FROM moved
     RETURNING seq`,
    [customerId, account, amount, at, reference, detail],
  );
  if (rows.length !== 1) throw new Error("not posted");
}

/** Of a month; a moment is itself. */
export const beginOf = (month: string): Date => new Date(month.length === 7 ? `${month}-01T00:00:00Z` : month);

export async function statementText(
  db: Database,
  customer: CustomerId,
  format: "json" | "csv",
  from: string,
  to: string,
  complete = true,
): Promise<string> {
  const ranges = await statementRanges(db, customer, beginOf(from), beginOf(to));
  const parts = ranges.map((range) => ({ range, entries: statementEntries(db, customer, range) }));
  const head = { customer_id: customer, month: from, complete };
  const pieces = format === "csv" ? statementCsv(head, parts) : statementJson(head, parts);
  return (await all(pieces)).join("");
}

export async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = [];
  for await (const item of items) list.push(item);
  return list;
}
