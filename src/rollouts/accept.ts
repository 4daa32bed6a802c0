/**
 * Where money and work meet: one statement checks the key, takes the charge and queues the rollout, or does none of
 * it. Row locks in the order key → account (→ idempotency key), see migration 0001.
 */
import { ApiError } from "#contract/errors.ts";
import type { CustomerId, KeyId, RequestId, RolloutId } from "#contract/ids.ts";
import { IDEMPOTENCY_KEPT_MS } from "#contract/limits.ts";
import { centsHalfUp, type Mils, mils, usdText } from "#contract/mils.ts";
import type { Lane, RolloutRoute, SamplingParams } from "#contract/rollout.ts";
import { unusableKey } from "#keys/keys.ts";
import { postEntry } from "#ledger/post.ts";
import { type Sql, violates } from "#platform/database.ts";

import { type Rollout, ROLLOUT_COLUMNS } from "./rollout.ts";

export interface NewRollout {
  readonly id: RolloutId;
  readonly key_id: KeyId;
  readonly customer_id: CustomerId;
  readonly request_id: RequestId;
  readonly route: RolloutRoute;
  readonly model: string;
  readonly lane: Lane;
  readonly k: number;
  readonly actions_per_candidate: number;
  readonly params: SamplingParams;
  /** SHA-256 of everything that decides the output. */
  readonly fingerprint: Buffer;
  readonly idempotency_key: string | null;
  /** The gateway process whose client waits, by its name in `gateway_leases`; null for asynchronous work. */
  readonly waiter_id: string | null;
  readonly deadline_at: Date;
}

export interface Accepted {
  /** `replayed`: that idempotency key was used before for the same payload; nothing was charged now. */
  readonly kind: "accepted" | "replayed";
  readonly rollout: Rollout;
}

/**
 * FOR SHARE makes a debit and a revocation of its key wait for each other; a plain read would miss a revocation that
 * commits while the account's row is waited for. The UPDATE in `moved` is the balance check: it reads the row as it
 * is once locked, so no two debits spend the same mil. Each CTE feeds on the one before it, so without a usable key or
 * enough balance the statement yields no row and has done nothing.
 */
const ACCEPT = `
  WITH payer AS MATERIALIZED (
    SELECT customer_id, price_in_force(customer_id, now()) AS price
      FROM api_keys
     WHERE id = $2 AND customer_id = $3 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
       FOR SHARE
  ),
  debit AS (
    SELECT customer_id, 'debit'::text AS kind, -(price::bigint * $9::int) AS amount_mils, $1::text AS rollout_id,
           $4::text AS reference, $15::text AS detail
      FROM payer
  ), ${postEntry("debit")},
  accepted AS (
    INSERT INTO rollouts (id, customer_id, key_id, request_id, route, model, lane, k, frames, actions_per_candidate,
                          params, fingerprint, price_mils_per_frame, charge_mils, waiter_id, deadline_at)
    SELECT $1, m.customer_id, $2, $4, $5, $6, $7, $8, $9, $10, $11, $12, p.price, -m.amount_mils, $13, $14
      FROM moved m JOIN payer p USING (customer_id)
    RETURNING ${ROLLOUT_COLUMNS}
  ),
  remembered AS (
    INSERT INTO idempotency_keys (customer_id, key, fingerprint, rollout_id)
    SELECT customer_id, $16, $12, id FROM accepted WHERE $16::text IS NOT NULL
  )
  SELECT ${ROLLOUT_COLUMNS} FROM accepted`;

/** Each new try needs somebody else to have changed the balance or the idempotency key just then. */
const TRIES_MAX = 5;

/**
 * Throws ApiError: unknown_key, revoked_key, expired_key, insufficient_credits, idempotency_mismatch. A replay wins
 * over insufficient credits: what an idempotency key was charged for before costs nothing now.
 */
export async function acceptRollout(sql: Sql, r: NewRollout): Promise<Accepted> {
  for (let tries = 0; tries < TRIES_MAX; tries++) {
    const rollout = await tryAccept(sql, r);
    if (rollout) return { kind: "accepted", rollout };
    // The statement did nothing; find out why. What changed in the meantime decides the next try.
    const { balance, charge } = await readPayer(sql, r);
    const replayed = r.idempotency_key === null ? null : await findReplay(sql, r, r.idempotency_key);
    if (replayed) return { kind: "replayed", rollout: replayed };
    if (balance < charge) throw insufficientCredits(balance, charge);
  }
  throw new ApiError("internal", `rollout ${r.id} was neither accepted nor refused in ${TRIES_MAX} tries`);
}

/** Null when the statement did nothing: no usable key, too little balance, or a used idempotency key. */
async function tryAccept(sql: Sql, r: NewRollout): Promise<Rollout | null> {
  const frames = framesOf(r);
  try {
    const [rollout] = await sql.query<Rollout>(ACCEPT, [
      r.id,
      r.key_id,
      r.customer_id,
      r.request_id,
      r.route,
      r.model,
      r.lane,
      r.k,
      frames,
      r.actions_per_candidate,
      r.params,
      r.fingerprint,
      r.waiter_id,
      r.deadline_at,
      `${ROUTE_LABEL[r.route]} · ${r.model} · ${frames} frames`,
      r.idempotency_key,
    ]);
    return rollout ?? null;
  } catch (error) {
    if (violates(error, "idempotency_keys_once")) return null;
    throw error;
  }
}

/** Frames on the bill: the conditioning frame of each candidate counts. */
const framesOf = (r: NewRollout): number => r.k * (r.actions_per_candidate + 1);

const ROUTE_LABEL = { predict: "predict", batch: "batch", rollouts: "rollout" } as const satisfies Record<
  RolloutRoute,
  string
>;

/** The rollout that this idempotency key stands for, or null when it is free; one that is too old is set free here. */
async function findReplay(sql: Sql, r: NewRollout, key: string): Promise<Rollout | null> {
  await sql.query(
    `DELETE FROM idempotency_keys
      WHERE customer_id = $1 AND key = $2 AND created_at < now() - $3::float8 * interval '1 ms'`,
    [r.customer_id, key, IDEMPOTENCY_KEPT_MS],
  );
  const [rollout] = await sql.query<Rollout>(
    `SELECT ${ROLLOUT_COLUMNS} FROM rollouts
      WHERE id = (SELECT rollout_id FROM idempotency_keys WHERE customer_id = $1 AND key = $2)`,
    [r.customer_id, key],
  );
  if (!rollout) return null;
  if (!rollout.fingerprint.equals(r.fingerprint)) {
    throw new ApiError(
      "idempotency_mismatch",
      "this Idempotency-Key was used before with another payload; expected the same payload, or another key",
    );
  }
  return rollout;
}

/** Throws ApiError(unknown_key, revoked_key, expired_key) when the key may not pay. */
async function readPayer(sql: Sql, r: NewRollout): Promise<{ balance: Mils; charge: Mils }> {
  const [row] = await sql.query<{ revoked: boolean; expired: boolean; balance_mils: Mils; price: number }>(
    `SELECT k.revoked_at IS NOT NULL AS revoked, coalesce(k.expires_at <= now(), false) AS expired, a.balance_mils,
            price_in_force(k.customer_id, now()) AS price
       FROM api_keys k JOIN accounts a ON a.customer_id = k.customer_id AND a.account = 'balance'
      WHERE k.id = $1 AND k.customer_id = $2`,
    [r.key_id, r.customer_id],
  );
  if (!row) throw unusableKey("unknown_key");
  if (row.revoked) throw unusableKey("revoked_key");
  if (row.expired) throw unusableKey("expired_key");
  return { balance: row.balance_mils, charge: mils(BigInt(framesOf(r)) * BigInt(row.price)) };
}

/** 402 with the object that the published client expects as `detail`. `what` is said to cost `requested`. */
export function insufficientCredits(balance: Mils, requested: Mils, what = "this"): ApiError {
  const message = `${what} costs $${usdText(requested)} and the balance is $${usdText(balance)}: top up and try again`;
  return new ApiError("insufficient_credits", message, {
    detail: {
      message,
      balance_mils: Number(balance),
      requested_mils: Number(requested),
      balance_cents: centsHalfUp(balance),
      requested_cents: centsHalfUp(requested),
    },
  });
}
