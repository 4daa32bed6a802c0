/**
 * Where money and work meet: one statement checks the keys, takes the charges and queues the rollouts of one customer,
 * each as if it had come alone. Row locks in the order key → account (→ idempotency key), see migration 0001.
 */
import type { RolloutId } from "#contract/ids.ts";
import { type Mils, mils } from "#contract/mils.ts";
import type { RolloutRoute } from "#contract/rollout.ts";
import { postEntries } from "#ledger/post.ts";
import { rejectsTheData, type Sql, violates } from "#platform/database.ts";

import type { NewRollout, Rollout } from "./rollout.ts";

/** What one try came to: taken; refused because the balance was short at that moment; or nobody knows, or bad data. */
export type Tried =
  | { readonly kind: "accepted"; readonly rollout: Rollout }
  | { readonly kind: "short"; readonly balance: Mils; readonly charge: Mils }
  | { readonly kind: "failed"; readonly error: unknown };

/**
 * FOR SHARE makes a debit and a revocation of its key wait for each other; a plain read would miss a revocation that
 * commits while the account's row is waited for. Each CTE feeds on the one before it, so a rollout without a usable key
 * or under a used idempotency key drops out alone, and where nothing is left the statement has done nothing. `linked`
 * reads the account as it is once locked, so no two debits spend the same mil.
 *
 * One text for one rollout and for many: beside a text for one alone it costs some 50 µs of 600, and the two could differ.
 */
const ACCEPT = `
  WITH wanted AS (
    SELECT *
      FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::int[], $9::int[],
                  $10::int[], $11::jsonb[], $12::bytea[], $13::text[], $14::timestamptz[], $15::text[], $16::text[],
                  $17::text[], $18::text[], $19::int[], $20::boolean[])
           WITH ORDINALITY
           AS w (id, key_id, request_id, route, model, lane, k, frames, actions_per_candidate, params, fingerprint,
                 waiter_id, deadline_at, detail, idempotency_key, webhook_url, dataset_id, dataset_row, scored, n)
     WHERE NOT EXISTS (SELECT FROM idempotency_keys i WHERE i.customer_id = $1 AND i.key = w.idempotency_key)
  ),
  payer AS MATERIALIZED (
    SELECT id AS key_id, customer_id, price_in_force(customer_id, now()) AS price
      FROM api_keys
     WHERE id = ANY ($3) AND customer_id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
     ORDER BY id
       FOR SHARE
  ),
  debits AS (
    SELECT w.*, p.customer_id, p.price, 'debit'::text AS kind, -(p.price::bigint * w.frames) AS amount_mils,
           w.id AS rollout_id, w.request_id AS reference
      FROM wanted w JOIN payer p USING (key_id)
  ), ${postEntries("debits")},
  accepted AS (
    INSERT INTO rollouts (id, customer_id, key_id, request_id, route, model, lane, k, frames, actions_per_candidate,
                          params, fingerprint, price_mils_per_frame, charge_mils, waiter_id, deadline_at,
                          start_by, webhook_url, dataset_id, dataset_row, scored)
    SELECT id, customer_id, key_id, request_id, route, model, lane, k, frames, actions_per_candidate,
           params, fingerprint, price, -amount_mils, waiter_id, deadline_at,
           CASE WHEN waiter_id IS NULL THEN deadline_at END, webhook_url, dataset_id, dataset_row, scored
      FROM linked WHERE posted
  ),
  remembered AS (
    INSERT INTO idempotency_keys (customer_id, key, fingerprint, rollout_id)
    SELECT customer_id, idempotency_key, fingerprint, id FROM linked WHERE posted AND idempotency_key IS NOT NULL
  )
  SELECT id, posted, balance_mils, price, -amount_mils AS charge_mils, now() AS created_at FROM linked`;

interface TriedRow {
  readonly id: RolloutId;
  readonly posted: boolean;
  /** After the debit where it was posted, else what it was too much for. */
  readonly balance_mils: Mils;
  readonly price: number;
  readonly charge_mils: Mils;
  readonly created_at: Date;
}

/** Told once of each rollout, as soon as its statement is over. */
export type TellTried<R extends NewRollout> = (r: R, tried: Tried | undefined) => void;

/**
 * Tries rollouts of one customer together, in their order; no two may have the same idempotency key, and several not
 * within a transaction. Never rejects. `tell` gets undefined for what was left alone, because its key is unusable or its
 * idempotency key used: `finishAccepting` finds out.
 */
export async function tryAccepting<R extends NewRollout>(
  sql: Sql,
  rs: readonly R[],
  tell: TellTried<R>,
): Promise<void> {
  let rows: readonly TriedRow[];
  try {
    rows = await sql.query<TriedRow>(ACCEPT, acceptParams(rs));
  } catch (error) {
    const keyUsedJustThen = violates(error, "idempotency_keys_once");
    // One of them spoils it for all, and PostgreSQL has rolled all back: in halves, it soon stands alone.
    if (rs.length > 1 && (keyUsedJustThen || rejectsTheData(error))) {
      const middle = Math.ceil(rs.length / 2);
      await tryAccepting(sql, rs.slice(0, middle), tell);
      await tryAccepting(sql, rs.slice(middle), tell);
      return;
    }
    for (const r of rs) tell(r, keyUsedJustThen ? undefined : { kind: "failed", error });
    return;
  }
  const byId = new Map(rows.map((row) => [row.id, row]));
  for (const r of rs) {
    const row = byId.get(r.id);
    tell(r, row && outcomeOf(r, row));
  }
}

/** Parameters of ACCEPT, a column each. */
function acceptParams(rs: readonly NewRollout[]): unknown[] {
  const column = (valueOf: (r: NewRollout) => unknown): unknown[] => rs.map(valueOf);
  return [
    rs[0]?.customer_id,
    column((r) => r.id),
    column((r) => r.key_id),
    column((r) => r.request_id),
    column((r) => r.route),
    column((r) => r.model),
    column((r) => r.lane),
    column((r) => r.k),
    column(framesOf),
    column((r) => r.actions_per_candidate),
    column((r) => r.params),
    column((r) => r.fingerprint),
    column((r) => r.waiter_id),
    column((r) => r.deadline_at),
    column((r) => `${ROUTE_LABEL[r.route]} · ${r.model} · ${framesOf(r)} frames`),
    column((r) => r.idempotency_key),
    column((r) => r.webhook_url),
    column((r) => r.dataset?.id ?? null),
    column((r) => r.dataset?.row ?? null),
    column((r) => r.scored),
  ];
}

function outcomeOf(r: NewRollout, row: TriedRow): Tried {
  if (!row.posted) return { kind: "short", balance: row.balance_mils, charge: row.charge_mils };
  // What was stored, without sending it back; test/rollouts/accept.test.ts compares the two.
  const rollout: Rollout = {
    id: r.id,
    customer_id: r.customer_id,
    key_id: r.key_id,
    request_id: r.request_id,
    route: r.route,
    model: r.model,
    lane: r.lane,
    status: "queued",
    attempt: 0,
    k: r.k,
    actions_per_candidate: r.actions_per_candidate,
    frames: framesOf(r),
    params: r.params,
    fingerprint: r.fingerprint,
    price_mils_per_frame: row.price,
    charge_mils: row.charge_mils,
    refunded_mils: NOTHING,
    frames_delivered: null,
    result: null,
    error_code: null,
    error_message: null,
    waiter_id: r.waiter_id,
    created_at: row.created_at,
    dispatched_at: null,
    finished_at: null,
    delivered_at: null,
    deadline_at: r.deadline_at,
    start_by: r.waiter_id === null ? r.deadline_at : null,
    webhook_url: r.webhook_url,
    dataset_id: r.dataset?.id ?? null,
    dataset_row: r.dataset?.row ?? null,
    files_deleted_at: null,
    scored: r.scored,
  };
  return { kind: "accepted", rollout };
}

const NOTHING = mils(0);

/** Frames on the bill: the conditioning frame of each candidate counts. */
const framesOf = (r: NewRollout): number => r.k * (r.actions_per_candidate + 1);

const ROUTE_LABEL = {
  predict: "predict",
  batch: "batch",
  rollouts: "rollout",
  dataset: "dataset",
} as const satisfies Record<RolloutRoute, string>;
