/** Making a key of a customer who exists: for an operator (keys.ts) and for the customer (self-service.ts). */
import { ApiError } from "#contract/errors.ts";
import { type CustomerId, type KeyId, newKeyId, type RandomBytes } from "#contract/ids.ts";
import { KEY_LABEL_CHARS_MAX } from "#contract/limits.ts";
import type { Sql } from "#platform/database.ts";

import { mintToken } from "./token.ts";

export interface KeyTerms {
  /** A name for people. */
  readonly label?: string | undefined;
  readonly expires_at?: Date | null | undefined;
  /** Absent or null: the default limit. */
  readonly rate_per_s?: number | null | undefined;
  readonly burst?: number | null | undefined;
}

export interface MintedKey {
  /** The secret: this is the only time it exists outside its owner's hands. */
  readonly api_key: string;
  readonly key_id: KeyId;
  readonly prefix: string;
}

/**
 * Locks the customer, so that closing it, minting for it and revoking its last keys come one after the other. Throws
 * ApiError(forbidden) for a closed one. In the lock order of the migrations this comes before any key or account.
 */
export async function lockOpenCustomer(tx: Sql, customerId: CustomerId): Promise<void> {
  const [customer] = await tx.query<{ closed_at: Date | null }>(
    `SELECT closed_at FROM customers WHERE id = $1 FOR NO KEY UPDATE`,
    [customerId],
  );
  if (!customer) throw new ApiError("not_found", `there is no customer ${customerId}`);
  if (customer.closed_at !== null) {
    throw new ApiError("forbidden", `customer ${customerId} is closed: it cannot have keys`);
  }
}

/** The customer must be locked. Throws ApiError(invalid_input) for a label that is too long or not printable. */
export async function mintKey(
  tx: Sql,
  customerId: CustomerId,
  terms: KeyTerms,
  random: RandomBytes,
): Promise<MintedKey> {
  const { label = null, expires_at = null, rate_per_s = null, burst = null } = terms;
  if (label !== null) checkLabel(label);
  const { token, hash, prefix } = mintToken(random);
  const keyId = newKeyId(random);
  await tx.query(
    `INSERT INTO api_keys (id, customer_id, key_hash, prefix, label, expires_at, rate_per_s, burst)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
    [keyId, customerId, hash, prefix, label, expires_at, rate_per_s, burst],
  );
  return { api_key: token, key_id: keyId, prefix };
}

/** Throws ApiError(invalid_input) for a label that is too long or not printable. */
export function checkLabel(label: string): void {
  if (label.length > KEY_LABEL_CHARS_MAX || /\p{Cc}/u.test(label)) {
    throw new ApiError(
      "invalid_input",
      `label: expected at most ${KEY_LABEL_CHARS_MAX} characters without control characters`,
    );
  }
}
