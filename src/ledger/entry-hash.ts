/**
 * The hash of a ledger entry, written again from its description and not from the SQL function `ledger_hash`, so that
 * the auditor and the database check each other (test/ledger/verify.test.ts).
 */
import { createHash } from "node:crypto";

/** An entry as the auditor reads it. */
export interface HashedEntry {
  readonly customer_id: string;
  readonly account: string;
  readonly seq: bigint;
  readonly kind: string;
  readonly amount_mils: bigint;
  readonly balance_after_mils: bigint;
  readonly rollout_id: string | null;
  readonly reference: string;
  readonly detail: string;
  /** UTC with microseconds, "2026-01-31T12:00:00.000001Z": a Date would lose them. */
  readonly created_at_text: string;
}

/** ASCII unit separator. The database keeps it out of every field. */
const SEPARATOR = "\x1f";

/** SHA-256 over the previous entry's hash (nothing for the first) and the separated fields in UTF-8. */
export function entryHash(previous: Buffer, e: HashedEntry): Buffer {
  const fields = [
    e.customer_id,
    e.account,
    e.seq,
    e.kind,
    e.amount_mils,
    e.balance_after_mils,
    e.rollout_id ?? "",
    e.reference,
    e.detail,
    e.created_at_text,
  ];
  return createHash("sha256").update(previous).update(fields.join(SEPARATOR)).digest();
}
