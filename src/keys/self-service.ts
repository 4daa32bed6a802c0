/**
 * What customers do with their keys themselves: list, mint, revoke, sign up. Minting and revoking hold the customer's row,
 * so that two revocations at the same time cannot both spare "the other" key, and read the asking key again under it: one
 * that was revoked a moment ago makes nothing and ends nothing.
 */
import { ApiError } from "#contract/errors.ts";
import { type CustomerId, type KeyId, LOCAL_CUSTOMER, LOCAL_KEY, type RandomBytes } from "#contract/ids.ts";
import { KEYS_PER_CUSTOMER_MAX } from "#contract/limits.ts";
import type { Database, Sql } from "#platform/database.ts";

import { addSignedUpCustomer } from "./customers.ts";
import { type ListedKey, unusableKey } from "./keys.ts";
import { lockOpenCustomer, type MintedKey, mintKey } from "./mint.ts";

/** The key that a request came with. */
export interface Asking {
  readonly key_id: KeyId;
  readonly customer_id: CustomerId;
}

export type OwnKey = Omit<ListedKey, "customer_id" | "email" | "signup_email" | "balance_mils">;

/** An operator may have made more than a customer can. */
const USABLE_LISTED_MAX = 200;
/** Of those that cannot be used, the newest. */
const OTHERS_LISTED_MAX = 50;

/** As the index api_keys_usable has it. */
const USABLE = `k.revoked_at IS NULL AND coalesce(k.expires_at, 'infinity') > now()`;
const OWN_KEY = `
  SELECT k.id AS key_id, k.prefix, k.label, k.rate_per_s, k.burst, k.created_at, u.last_used_at, k.expires_at, k.revoked_at
    FROM api_keys k LEFT JOIN api_key_usage u ON u.key_id = k.id`;

export function keysOfCustomer(sql: Sql, customerId: CustomerId): Promise<OwnKey[]> {
  return sql.query<OwnKey>(
    `SELECT k.* FROM (
       (${OWN_KEY} WHERE k.customer_id = $1 AND ${USABLE} ORDER BY k.created_at DESC, k.id LIMIT ${USABLE_LISTED_MAX})
       UNION ALL
       (${OWN_KEY} WHERE k.customer_id = $1 AND NOT (${USABLE}) ORDER BY k.created_at DESC, k.id LIMIT ${OTHERS_LISTED_MAX})
     ) k ORDER BY (${USABLE}) DESC, k.created_at DESC, k.key_id`,
    [customerId],
  );
}

/**
 * One more key on the same balance, under the asking key's own limits. It never outlives the asking one: an operator who
 * gave a key an end gave it to whatever the key makes. Throws ApiError: too_many_keys, invalid_input, revoked_key,
 * expired_key, forbidden (a closed customer, or the built-in one).
 */
export function mintOwnKey(
  db: Database,
  asking: Asking,
  wanted: { readonly label?: string | undefined; readonly expires_at?: Date | undefined },
  random: RandomBytes,
): Promise<MintedKey & { readonly key: OwnKey }> {
  if (asking.customer_id === LOCAL_CUSTOMER) return Promise.reject(noKeysOfLocalCustomer());
  return db.transaction(async (tx) => {
    await lockOpenCustomer(tx, asking.customer_id);
    const { rate_per_s, burst, expires_at: lastDay } = await usableAsking(tx, asking);
    const usable = await usableKeys(tx, asking.customer_id);
    if (usable.length >= KEYS_PER_CUSTOMER_MAX) {
      throw new ApiError(
        "too_many_keys",
        `a customer may have ${KEYS_PER_CUSTOMER_MAX} keys that can be used; delete one with DELETE /v1/keys/{id} first`,
      );
    }
    const expires_at = wanted.expires_at ?? lastDay;
    if (lastDay !== null && expires_at !== null && expires_at > lastDay) {
      throw new ApiError(
        "invalid_input",
        `expires_at: the key that asks expires at ${lastDay.toISOString()}, and a key that it makes cannot outlive it`,
      );
    }
    const minted = await mintKey(
      tx,
      asking.customer_id,
      { label: wanted.label, expires_at, rate_per_s, burst },
      random,
    );
    return { ...minted, key: await readOwn(tx, asking.customer_id, minted.key_id) };
  });
}

/** Its credit is the gift of a server with AUTH=off, where nobody says who they are; a key would carry it to one with AUTH=on. */
const noKeysOfLocalCustomer = (): ApiError =>
  new ApiError(
    "forbidden",
    "the built-in customer of a server with AUTH=off makes no keys; its operator makes some for another customer with: " +
      "dream-engine keys create --customer <e-mail>",
  );

/**
 * Ends a key of the same customer, the asking one included; from then on no debit commits for it (see revokeKey). Again:
 * nothing changes. Throws ApiError: not_found (also for another customer's key), last_key unless forced.
 */
export function revokeOwnKey(
  db: Database,
  asking: Asking,
  keyId: string,
  { force }: { readonly force: boolean },
): Promise<OwnKey> {
  return db.transaction(async (tx) => {
    await lockOpenCustomer(tx, asking.customer_id);
    await usableAsking(tx, asking);
    const target = await readOwn(tx, asking.customer_id, keyId);
    if (target.key_id === LOCAL_KEY) {
      throw new ApiError("forbidden", "the built-in key of a server with AUTH=off cannot be deleted");
    }
    const usable = await usableKeys(tx, asking.customer_id);
    if (!force && usable.length === 1 && usable[0] === target.key_id) {
      throw new ApiError(
        "last_key",
        "this is your last key: without it nobody reaches the balance. Make another first, or delete it with ?force=true",
      );
    }
    await tx.query(`UPDATE api_keys SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL`, [target.key_id]);
    return readOwn(tx, asking.customer_id, target.key_id);
  });
}

interface AskingRow {
  readonly rate_per_s: number | null;
  readonly burst: number | null;
  readonly expires_at: Date | null;
  readonly revoked: boolean;
  readonly expired: boolean;
}

/** The asking key as it is now, held until the transaction ends. */
async function usableAsking(tx: Sql, { key_id }: Asking): Promise<AskingRow> {
  const [row] = await tx.query<AskingRow>(
    `SELECT rate_per_s, burst, expires_at, revoked_at IS NOT NULL AS revoked, coalesce(expires_at <= now(), false) AS expired
       FROM api_keys WHERE id = $1 FOR SHARE`,
    [key_id],
  );
  if (!row) throw unusableKey("unknown_key");
  if (row.revoked) throw unusableKey("revoked_key");
  if (row.expired) throw unusableKey("expired_key");
  return row;
}

/** As many as anybody here counts. */
async function usableKeys(tx: Sql, customerId: CustomerId): Promise<KeyId[]> {
  const rows = await tx.query<{ id: KeyId }>(
    `SELECT k.id FROM api_keys k WHERE k.customer_id = $1 AND ${USABLE} LIMIT ${KEYS_PER_CUSTOMER_MAX}`,
    [customerId],
  );
  return rows.map(({ id }) => id);
}

async function readOwn(tx: Sql, customerId: CustomerId, keyId: string): Promise<OwnKey> {
  // Of another form it is nobody's, and PostgreSQL takes no text with a NUL in it.
  const rows = /^key_\w{1,60}$/.test(keyId)
    ? await tx.query<OwnKey>(`${OWN_KEY} WHERE k.id = $1 AND k.customer_id = $2`, [keyId, customerId])
    : [];
  const [key] = rows;
  if (!key) throw new ApiError("not_found", "you have no key of that id");
  return key;
}

/**
 * A new customer with its first key, always: the address is on record as unconfirmed, gives no key to anybody's balance and
 * takes the name from nobody (customers.ts). Throws ApiError(invalid_input) for a label that is too long or not printable.
 */
export function signUp(
  db: Database,
  { email, label }: { readonly email: string; readonly label?: string | undefined },
  random: RandomBytes,
): Promise<MintedKey & { readonly customer_id: CustomerId }> {
  return db.transaction(async (tx) => {
    const customer_id = await addSignedUpCustomer(tx, email, random);
    return { ...(await mintKey(tx, customer_id, { label }, random)), customer_id };
  });
}
