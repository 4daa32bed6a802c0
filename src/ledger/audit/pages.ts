/**
 * How the auditor reads: row after row of a whole table, a page in memory at a time. What belongs to a row is looked up
 * by scalar subqueries and not joined: a planner that does not know how few rows a page has may read the other table
 * whole, for each page.
 */
const PAGE_ROWS = 2_000;

/** `read` gets the last row of the page before, and how many rows a page has. */
export async function* pages<Row>(
  read: (after: Row | undefined, limit: number) => Promise<Row[]>,
): AsyncGenerator<Row> {
  let after: Row | undefined;
  for (;;) {
    const page = await read(after, PAGE_ROWS);
    yield* page;
    after = page.at(-1);
    if (page.length < PAGE_ROWS) return;
  }
}

/** What one part of the audit looks at, and where it says how far it is. */
export interface AuditScope {
  /** One customer, or null for all. */
  readonly customer: string | null;
  /** Called for each row that was checked. */
  readonly checked: (what: keyof Checked) => void;
}

/** How many of each were looked at. */
export interface Checked {
  accounts: number;
  entries: number;
  rollouts: number;
  dataset_rows: number;
  payments: number;
  operator_actions: number;
}
