/** Takes a rollout in, or says why not. try-accepting.ts has the statement; where that did nothing, this finds out why. */
import { ApiError } from "#contract/errors.ts";
import type { CustomerId } from "#contract/ids.ts";
import { IDEMPOTENCY_KEPT_MS } from "#contract/limits.ts";
import { centsHalfUp, type Mils, usdText } from "#contract/mils.ts";
import { unusableKey } from "#keys/keys.ts";
import type { Sql } from "#platform/database.ts";

import { type NewRollout, type Rollout, ROLLOUT_COLUMNS } from "./rollout.ts";
import { type Tried, tryAccepting } from "./try-accepting.ts";

export interface Accepted {
  /** `replayed`: that idempotency key was used before for the same payload; nothing was charged now. */
  readonly kind: "accepted" | "replayed";
  readonly rollout: Rollout;
}

/** Each new try needs somebody else to have taken the idempotency key, or set it free, just then: more than any burst does. */
const TRIES_MAX = 100;

/**
 * Throws ApiError: unknown_key, revoked_key, expired_key, insufficient_credits, idempotency_mismatch. A replay wins
 * over insufficient credits: what an idempotency key was charged for before costs nothing now.
 */
export async function acceptRollout(sql: Sql, r: NewRollout): Promise<Accepted> {
  return finishAccepting(sql, r, await tryOne(sql, r));
}

async function tryOne(sql: Sql, r: NewRollout): Promise<Tried | undefined> {
  let result: Tried | undefined;
  await tryAccepting(sql, [r], (_, tried) => {
    result = tried;
  });
  return result;
}

/** acceptRollout from where one try of it left off; undefined where the statement left it alone. */
export async function finishAccepting(sql: Sql, r: NewRollout, first: Tried | undefined): Promise<Accepted> {
  let tried = first;
  for (let tries = 1; ; tries++) {
    if (tried?.kind === "accepted") return tried;
    if (tried?.kind === "failed") throw tried.error;
    // The statement did nothing; find out why. What changed in the meantime decides the next try.
    if (!tried) await assertKeyUsable(sql, r);
    const replayed = r.idempotency_key === null ? null : await findReplay(sql, r, r.idempotency_key);
    if (replayed) return { kind: "replayed", rollout: replayed };
    if (tried) throw insufficientCredits(tried.balance, tried.charge);
    if (tries === TRIES_MAX) break;
    tried = await tryOne(sql, r);
  }
  throw new ApiError("internal", `rollout ${r.id} was neither accepted nor refused in ${TRIES_MAX} tries`);
}

/** Whether a rollout was accepted under it; then a request with it is most likely a repetition. */
export async function isKeyUsed(sql: Sql, customerId: CustomerId, key: string): Promise<boolean> {
  const found = await sql.query(`SELECT FROM idempotency_keys WHERE customer_id = $1 AND key = $2`, [customerId, key]);
  return found.length > 0;
}

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
async function assertKeyUsable(sql: Sql, r: NewRollout): Promise<void> {
  const [row] = await sql.query<{ revoked: boolean; expired: boolean }>(
    `SELECT revoked_at IS NOT NULL AS revoked, coalesce(expires_at <= now(), false) AS expired
       FROM api_keys WHERE id = $1 AND customer_id = $2`,
    [r.key_id, r.customer_id],
  );
  if (!row) throw unusableKey("unknown_key");
  if (row.revoked) throw unusableKey("revoked_key");
  if (row.expired) throw unusableKey("expired_key");
}

/**
 * 402 with the object that the published client expects as `detail`. `what` is said to cost `requested`; a debt is named,
 * because the next top-up pays it first.
 */
export function insufficientCredits(balance: Mils, requested: Mils, what = "this", debt?: Mils): ApiError {
  const owed = debt ? ` ($${usdText(debt)} are owed, which a top-up pays first)` : "";
  const message = `${what} costs $${usdText(requested)} and the balance is $${usdText(balance)}${owed}: top up and try again`;
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
