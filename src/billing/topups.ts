/** Top-ups as rows: a Checkout session that we asked for, whether or not Stripe has answered yet. */
import { ApiError } from "#contract/errors.ts";
import { newTopupId, type RandomBytes, type TopupId } from "#contract/ids.ts";
import { IDEMPOTENCY_KEPT_MS } from "#contract/limits.ts";
import type { Sql } from "#platform/database.ts";

export type TopupState = "open" | "expired" | "failed" | "paid";

export interface Topup {
  readonly id: TopupId;
  readonly customer_id: string;
  /** Of the request that began it; it travels in the metadata, so a repetition must send the same. */
  readonly request_id: string;
  readonly amount_cents: number;
  /** Null until Stripe has answered. */
  readonly session_id: string | null;
  readonly session_url: string | null;
  readonly state: TopupState;
  readonly created_at: Date;
}

const COLUMNS = "id, customer_id, request_id, amount_cents, session_id, session_url, state, created_at";

export interface NewTopup {
  readonly customer_id: string;
  readonly request_id: string;
  readonly amount_cents: number;
  readonly idempotency_key: string | null;
}

/** Each try but the first follows somebody else's having taken, or given up, the same key at the same moment. */
const TRIES = 5;

/**
 * The new top-up, or the one that this customer began under the same idempotency key within a day, unless nothing can be
 * paid by that one any more: then it gives the key up.
 * Throws ApiError(idempotency_mismatch) when that one is about another amount.
 */
export async function beginTopup(sql: Sql, topup: NewTopup, random: RandomBytes): Promise<Topup> {
  const { customer_id, request_id, amount_cents, idempotency_key } = topup;
  for (let tries = 0; tries < TRIES; tries++) {
    if (idempotency_key !== null) await giveUpKey(sql, customer_id, idempotency_key);
    const [made] = await sql.query<Topup>(
      `INSERT INTO topups (id, customer_id, request_id, idempotency_key, amount_cents) VALUES ($1, $2, $3, $4, $5)
       ON CONFLICT (customer_id, idempotency_key) DO NOTHING RETURNING ${COLUMNS}`,
      [newTopupId(random), customer_id, request_id, idempotency_key, amount_cents],
    );
    if (made) return made;
    const [earlier] = await sql.query<Topup>(
      `SELECT ${COLUMNS} FROM topups WHERE customer_id = $1 AND idempotency_key = $2`,
      [customer_id, idempotency_key],
    );
    if (!earlier) continue;
    if (earlier.amount_cents !== amount_cents) {
      throw new ApiError(
        "idempotency_mismatch",
        `this Idempotency-Key was used for a top-up of ${earlier.amount_cents} cents, not ${amount_cents}; take a new key`,
      );
    }
    return earlier;
  }
  throw new Error(`top-up ${idempotency_key} of ${customer_id} neither made nor found`);
}

/** By a top-up that nobody can pay any more, or after the day for which Stripe keeps its own keys and sessions. */
async function giveUpKey(sql: Sql, customerId: string, key: string): Promise<void> {
  await sql.query(
    `UPDATE topups SET idempotency_key = NULL
      WHERE customer_id = $1 AND idempotency_key = $2
        AND (state IN ('expired', 'failed') OR created_at < now() - $3 * interval '1 millisecond')`,
    [customerId, key, IDEMPOTENCY_KEPT_MS],
  );
}

/** What Stripe answered; the first answer stays and is given back. */
export async function storeSession(
  sql: Sql,
  id: TopupId,
  session: { readonly id: string; readonly url: string },
): Promise<{ readonly id: string; readonly url: string }> {
  const [stored] = await sql.query<{ id: string; url: string }>(
    `UPDATE topups SET session_id = coalesce(session_id, $2), session_url = coalesce(session_url, $3) WHERE id = $1
     RETURNING session_id AS id, session_url AS url`,
    [id, session.id, session.url],
  );
  return stored ?? session;
}

export interface ListedTopup extends Topup {
  readonly payment_id: string | null;
  readonly credited_mils: bigint | null;
  readonly clawed_back_mils: bigint | null;
  /** Why it could not be credited by itself. */
  readonly problem: string | null;
}

/** Newest first; of one customer, or of all. */
export function listTopups(sql: Sql, customerId: string | null, limit: number): Promise<ListedTopup[]> {
  return sql.query<ListedTopup>(
    `SELECT t.id, t.customer_id, t.request_id, t.amount_cents, t.session_id, t.session_url, t.state, t.created_at,
            p.id AS payment_id, p.credited_mils, p.clawed_back_mils, p.problem
       FROM topups t LEFT JOIN payments p ON p.topup_id = t.id
      WHERE $1::text IS NULL OR t.customer_id = $1
      ORDER BY t.created_at DESC, t.id LIMIT $2`,
    [customerId, limit],
  );
}
