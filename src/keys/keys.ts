/** API keys: several may share a customer and so a balance. Of a key only the hash is stored. */
import { ApiError } from "#contract/errors.ts";
import { type CustomerId, type KeyId, LOCAL_CUSTOMER, LOCAL_KEY, type RandomBytes } from "#contract/ids.ts";
import { type Mils, mils } from "#contract/mils.ts";
import { balanceOf, credit } from "#ledger/ledger.ts";
import { recordAction } from "#ledger/operator-actions.ts";
import type { Clock } from "#platform/clock.ts";
import type { Database, Sql } from "#platform/database.ts";

import { emailSpelling, ensureCustomer } from "./customers.ts";
import { type KeyTerms, lockOpenCustomer, type MintedKey, mintKey } from "./mint.ts";
import { mintToken, readToken } from "./token.ts";

/** Who sends a request, and what the gateway needs to know before it reads the body. */
export interface KeyIdentity {
  readonly key_id: KeyId;
  readonly customer_id: CustomerId;
  readonly balance_mils: Mils;
  /** Null: the default limit. */
  readonly rate_per_s: number | null;
  readonly burst: number | null;
  readonly price_mils_per_frame: number;
}

export interface NewKey extends KeyTerms {
  /** `cus_…` or an e-mail address; created when there is none of that name. */
  readonly customer: string;
  readonly initial_credits?: Mils;
  /** Who gives the initial credits, for the record of it. */
  readonly operator?: string;
}

export interface CreatedKey extends MintedKey {
  readonly customer_id: CustomerId;
  readonly balance_mils: Mils;
  readonly created_customer: boolean;
}

/** Throws ApiError: invalid_request (neither an id nor an address), invalid_input (label), forbidden (a closed customer). */
export function createKey(db: Database, key: NewKey, random: RandomBytes): Promise<CreatedKey> {
  return db.transaction(async (tx) => {
    const customer = await ensureCustomer(tx, key.customer, random);
    await lockOpenCustomer(tx, customer.id);
    const minted = await mintKey(tx, customer.id, key, random);
    if (key.initial_credits !== undefined && key.initial_credits > 0n) {
      await credit(tx, {
        customer_id: customer.id,
        amount: key.initial_credits,
        reference: `initial_${minted.key_id}`,
        detail: "initial credit",
      });
      await recordAction(tx, {
        operator: key.operator ?? "dream-engine",
        action: "keys create",
        customer_id: customer.id,
        reason: "initial credit",
        reference: `initial_${minted.key_id}`,
        details: { amount_mils: Number(key.initial_credits) },
      });
    }
    return {
      ...minted,
      customer_id: customer.id,
      balance_mils: await balanceOf(tx, customer.id),
      created_customer: customer.created,
    };
  });
}

// A closed customer's keys count as revoked, and closing revokes them, too.
const IDENTITY = `
  SELECT k.id AS key_id, k.customer_id, k.rate_per_s, k.burst, coalesce(k.revoked_at, c.closed_at) AS revoked_at,
         k.expires_at, a.balance_mils, price_in_force(k.customer_id, now()) AS price_mils_per_frame
    FROM api_keys k JOIN customers c ON c.id = k.customer_id
    JOIN accounts a ON a.customer_id = k.customer_id AND a.account = 'balance'`;

type IdentityRow = KeyIdentity & { readonly revoked_at: Date | null; readonly expires_at: Date | null };

/**
 * Who holds the bearer token; null when the request has none. Throws ApiError with one of missing_key, malformed_key
 * (told without the database), unknown_key, revoked_key, expired_key. A key that is revoked afterwards is caught by
 * the debit (rollouts/try-accepting.ts).
 */
export async function authenticate(sql: Sql, bearer: string | null, clock: Clock): Promise<KeyIdentity> {
  if (bearer === null) throw new ApiError("missing_key", "expected an API key: Authorization: Bearer dre_…");
  const read = readToken(bearer);
  if (!read.ok) throw new ApiError("malformed_key", `the API key ${read.problem}`);
  const [row] = await sql.query<IdentityRow>(`${IDENTITY} WHERE k.key_hash = $1`, [read.hash]);
  if (!row) throw unusableKey("unknown_key");
  if (row.revoked_at !== null) throw unusableKey("revoked_key");
  if (row.expires_at !== null && row.expires_at.getTime() <= clock.now()) throw unusableKey("expired_key");
  return identityOf(row);
}

const UNUSABLE = {
  unknown_key: "this API key is not known here",
  revoked_key: "this API key has been revoked",
  expired_key: "this API key has expired",
} as const;

export const unusableKey = (code: keyof typeof UNUSABLE): ApiError => new ApiError(code, UNUSABLE[code]);

function identityOf({ revoked_at: _revokedAt, expires_at: _expiresAt, ...identity }: IdentityRow): KeyIdentity {
  return identity;
}

export interface ListedKey {
  readonly key_id: KeyId;
  readonly customer_id: CustomerId;
  readonly email: string | null;
  /** What the customer signed up with, which nobody has confirmed. */
  readonly signup_email: string | null;
  readonly prefix: string;
  readonly label: string | null;
  readonly rate_per_s: number | null;
  readonly burst: number | null;
  readonly created_at: Date;
  /** As far as gateways have written it: they do so every half minute. */
  readonly last_used_at: Date | null;
  readonly expires_at: Date | null;
  readonly revoked_at: Date | null;
  readonly balance_mils: Mils;
}

/** Of those that were revoked, the last ones only: rotation makes more of them every day. */
export const REVOKED_LISTED_MAX = 100;

const LISTED_KEY = `
  SELECT k.id AS key_id, k.customer_id, c.email, c.signup_email, k.prefix, k.label, k.rate_per_s, k.burst,
         k.created_at, u.last_used_at, k.expires_at, k.revoked_at, a.balance_mils
    FROM api_keys k
    LEFT JOIN api_key_usage u ON u.key_id = k.id
    JOIN customers c ON c.id = k.customer_id
    JOIN accounts a ON a.customer_id = k.customer_id AND a.account = 'balance'`;

const listedKeys = (whose: string): string => `
  SELECT * FROM (
    (${LISTED_KEY} WHERE ${whose} AND k.revoked_at IS NULL)
    UNION ALL
    (${LISTED_KEY} WHERE ${whose} AND k.revoked_at IS NOT NULL ORDER BY k.revoked_at DESC, k.id LIMIT ${REVOKED_LISTED_MAX})
  ) listed ORDER BY created_at, key_id`;
const ALL_KEYS = listedKeys("true");
const KEYS_OF_CUSTOMER = listedKeys("(c.id = $1 OR c.email = $2)");

/** Keys of one customer (id or e-mail address), or all; oldest first. Of revoked ones the last REVOKED_LISTED_MAX. */
export function listKeys(sql: Sql, customer?: string): Promise<ListedKey[]> {
  return customer === undefined
    ? sql.query<ListedKey>(ALL_KEYS)
    : sql.query<ListedKey>(KEYS_OF_CUSTOMER, [customer, emailSpelling(customer)]);
}

/**
 * From the moment this resolves no debit commits for that key: a debit holds the key's row FOR SHARE, so this waits
 * for those that are under way, and those that come later see the revocation. Revoking again changes nothing.
 */
export async function revokeKey(sql: Sql, keyIdOrPrefix: string): Promise<NamedKey & { readonly revoked_at: Date }> {
  const keyId = await findKey(sql, keyIdOrPrefix);
  const [revoked] = await sql.query<NamedKey & { revoked_at: Date }>(
    `UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE id = $1
     RETURNING id AS key_id, customer_id, prefix, revoked_at`,
    [keyId],
  );
  if (!revoked) throw new Error(`key ${keyId} vanished`); // keys are never deleted
  return revoked;
}

export interface NamedKey {
  readonly key_id: KeyId;
  readonly customer_id: CustomerId;
  readonly prefix: string;
}

export interface KeyLimit {
  /** Null: the default. */
  readonly rate_per_s: number | null;
  readonly burst: number | null;
}

/** Sets the key's own limit, which holds from its next request on; null goes back to the default. */
export async function limitKey(sql: Sql, keyIdOrPrefix: string, limit: KeyLimit): Promise<NamedKey & KeyLimit> {
  const keyId = await findKey(sql, keyIdOrPrefix);
  const [limited] = await sql.query<NamedKey & KeyLimit>(
    `UPDATE api_keys SET rate_per_s = $2, burst = $3 WHERE id = $1
     RETURNING id AS key_id, customer_id, prefix, rate_per_s, burst`,
    [keyId, limit.rate_per_s, limit.burst],
  );
  if (!limited) throw new Error(`key ${keyId} vanished`); // keys are never deleted
  return limited;
}

/** Throws ApiError: not_found, or invalid_request for a prefix of several keys. */
async function findKey(sql: Sql, keyIdOrPrefix: string): Promise<KeyId> {
  const matches = await sql.query<{ id: KeyId }>(`SELECT id FROM api_keys WHERE id = $1 OR prefix = $1`, [
    keyIdOrPrefix,
  ]);
  const [match, ...others] = matches;
  if (!match) throw new ApiError("not_found", `there is no key ${keyIdOrPrefix}`);
  if (others.length > 0) {
    throw new ApiError("invalid_request", `${matches.length} keys start with ${keyIdOrPrefix}: name one by its key id`);
  }
  return match.id;
}

/** What the local customer may spend with AUTH=off: $1,000, so that the ledger works as it does anywhere else. */
const LOCAL_CREDIT = mils(10_000_000);

/** The built-in customer and key of a server that runs with AUTH=off; made on first use, one read afterwards. */
export async function localKey(db: Database, random: RandomBytes): Promise<KeyIdentity> {
  const found = await readLocalKey(db);
  if (found) return found;
  await db.transaction((tx) => createLocalKey(tx, random));
  const created = await readLocalKey(db);
  if (!created) throw new Error(`no key ${LOCAL_KEY} after creating it`);
  return created;
}

async function readLocalKey(sql: Sql): Promise<KeyIdentity | null> {
  const [row] = await sql.query<IdentityRow>(`${IDENTITY} WHERE k.id = $1`, [LOCAL_KEY]);
  return row ? identityOf(row) : null;
}

async function createLocalKey(tx: Sql, random: RandomBytes): Promise<void> {
  // An operator may have made the customer before, with a key or without.
  await ensureCustomer(tx, LOCAL_CUSTOMER, random);
  await lockOpenCustomer(tx, LOCAL_CUSTOMER);
  // Nobody holds the token behind this hash, so the local key cannot be used with AUTH=on; nor does it make another that
  // could (mintOwnKey).
  const { hash, prefix } = mintToken(random);
  const [made] = await tx.query(
    `INSERT INTO api_keys (id, customer_id, key_hash, prefix, label) VALUES ($1, $2, $3, $4, 'local')
     ON CONFLICT (id) DO NOTHING RETURNING id`,
    [LOCAL_KEY, LOCAL_CUSTOMER, hash, prefix],
  );
  if (!made) return; // by a request that came at the same time, and the credit with it
  await credit(tx, {
    customer_id: LOCAL_CUSTOMER,
    amount: LOCAL_CREDIT,
    reference: "local_credit",
    detail: "local credit",
  });
}
