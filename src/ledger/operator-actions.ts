/** The record of what operators do by hand: who, what, when and why. The auditor asks for one beside money from nowhere else. */
import { ApiError } from "#contract/errors.ts";
import type { Sql } from "#platform/database.ts";

export interface OperatorAction {
  readonly operator: string;
  /** The command, such as "credits adjust". */
  readonly action: string;
  /** Null where it concerns everybody. */
  readonly customer_id: string | null;
  readonly reason: string;
  /** Of the ledger entry that it made, whose amount is then `details.amount_mils`; null where it made none. Unique. */
  readonly reference: string | null;
  readonly details: Readonly<Record<string, string | number | null>>;
}

const LINE_CHARS_MAX = 300;

/** Reasons and references stand in statements and records: one line of text. Throws ApiError(invalid_request). */
export function assertLine(what: string, text: string): void {
  if (text.trim() !== "" && text.length <= LINE_CHARS_MAX && !/\p{Cc}/u.test(text)) return;
  throw new ApiError("invalid_request", `expected ${what} of one line, 1 to ${LINE_CHARS_MAX} characters`);
}

/** `tx`, because a deed without its record, or a record without its deed, must not be. */
export async function recordAction(tx: Sql, a: OperatorAction): Promise<void> {
  assertLine("a reason", a.reason);
  await tx.query(
    `INSERT INTO operator_actions (operator, action, customer_id, reason, reference, details)
     VALUES ($1, $2, $3, $4, $5, $6)`,
    [a.operator, a.action, a.customer_id, a.reason, a.reference, a.details],
  );
}
