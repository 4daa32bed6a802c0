/**
 * A statement as JSON and as CSV, piece by piece. Amounts are written from their bigints, so no double ever touches
 * them; hashes are hexadecimal. docs/money.md says how to verify one, examples/verify_statement.py does it.
 */
import type { ChainState, StatementEntry, StatementRange } from "./statement.ts";

export interface StatementHead {
  readonly customer_id: string;
  /** "2026-11", in UTC. */
  readonly month: string;
  /** False while entries of this month may still come. */
  readonly complete: boolean;
}

export interface StatementPart {
  readonly range: StatementRange;
  readonly entries: AsyncIterable<StatementEntry>;
}

const numberOf = (value: bigint): string => value.toString();
const hexOf = (hash: Buffer): string => hash.toString("hex");

/** `{object, customer_id, month, complete, accounts: [{account, opening, entries, closing}]}` */
export async function* statementJson(
  { customer_id, month, complete }: StatementHead,
  parts: readonly StatementPart[],
): AsyncGenerator<string> {
  const head = { object: "statement", customer_id, month, complete };
  yield `${JSON.stringify(head).slice(0, -1)},"accounts":[`;
  for (const [index, { range, entries }] of parts.entries()) {
    yield `${index === 0 ? "" : ","}\n{"account":"${range.account}","opening":${stateJson(range.opening)},"entries":[`;
    let separator = "";
    for await (const entry of entries) {
      yield `${separator}\n${entryJson(entry)}`;
      separator = ",";
    }
    yield `],"closing":${stateJson(range.closing)}}`;
  }
  yield "]}\n";
}

function stateJson({ seq, balance_mils, head_hash }: ChainState): string {
  return `{"seq":${numberOf(seq)},"balance_mils":${numberOf(balance_mils)},"head_hash":"${hexOf(head_hash)}"}`;
}

function entryJson(e: StatementEntry): string {
  const numbers = `"amount_mils":${numberOf(e.amount_mils)},"balance_after_mils":${numberOf(e.balance_after_mils)}`;
  const { kind, rollout_id, reference, detail } = e;
  const texts = JSON.stringify({ kind, rollout_id, reference, detail, created_at: e.created_at_text }).slice(1, -1);
  return `{"seq":${numberOf(e.seq)},${texts},${numbers},"prev_hash":"${hexOf(e.prev_hash)}","hash":"${hexOf(e.hash)}"}`;
}

const CSV_COLUMNS = [
  "customer_id",
  "account",
  "seq",
  "created_at",
  "kind",
  "amount_mils",
  "balance_after_mils",
  "rollout_id",
  "reference",
  "detail",
  "prev_hash",
  "hash",
] as const;

type CsvRow = Partial<Record<(typeof CSV_COLUMNS)[number], string>>;

/**
 * RFC 4180. Each account begins with a row of kind "opening" and ends with one of kind "closing": where the chain stood,
 * so a file that was cut off shows. Text cells that a spreadsheet would take for a formula get a leading apostrophe.
 */
export async function* statementCsv(
  { customer_id, month, complete }: StatementHead,
  parts: readonly StatementPart[],
): AsyncGenerator<string> {
  yield csvLine(Object.fromEntries(CSV_COLUMNS.map((name) => [name, name])));
  for (const { range, entries } of parts) {
    const { account, opening, closing } = range;
    yield csvLine({ customer_id, account, kind: "opening", detail: month, ...stateCsv(opening) });
    for await (const entry of entries) yield csvLine({ customer_id, account, ...entryCsv(entry) });
    const detail = complete ? month : `${month}, to be continued`;
    yield csvLine({ customer_id, account, kind: "closing", detail, ...stateCsv(closing) });
  }
}

function stateCsv({ seq, balance_mils, head_hash }: ChainState): CsvRow {
  return { seq: numberOf(seq), balance_after_mils: numberOf(balance_mils), hash: hexOf(head_hash) };
}

function entryCsv(e: StatementEntry): CsvRow {
  return {
    seq: numberOf(e.seq),
    created_at: e.created_at_text,
    kind: e.kind,
    amount_mils: numberOf(e.amount_mils),
    balance_after_mils: numberOf(e.balance_after_mils),
    rollout_id: e.rollout_id ?? "",
    reference: harmless(e.reference),
    detail: harmless(e.detail),
    prev_hash: hexOf(e.prev_hash),
    hash: hexOf(e.hash),
  };
}

/** An apostrophe of the text's own gets one, too: whoever takes one leading apostrophe away has the text again. */
function harmless(text: string): string {
  return /^[=+\-@\t\r']/.test(text) ? `'${text}` : text;
}

function csvLine(row: CsvRow): string {
  return `${CSV_COLUMNS.map((name) => csvCell(row[name] ?? "")).join(",")}\r\n`;
}

function csvCell(text: string): string {
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
