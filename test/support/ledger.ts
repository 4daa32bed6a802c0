/** Customers with credit and rollouts for tests of what happens behind the gateway. */
import { createHash, randomBytes } from "node:crypto";

import { grantCredit } from "#billing/operator.ts";
import { newRequestId, newRolloutId, newTopupId, type RolloutId } from "#contract/ids.ts";
import type { Outcome } from "#contract/jobs.ts";
import { type Mils, mils } from "#contract/mils.ts";
import { type CreatedKey, createKey } from "#keys/keys.ts";
import { adjust } from "#ledger/adjust.ts";
import { clawBack } from "#ledger/clawback.ts";
import { credit } from "#ledger/ledger.ts";
import { recordAction } from "#ledger/operator-actions.ts";
import { verifyLedger } from "#ledger/verify.ts";
import type { Database, Sql } from "#platform/database.ts";
import { acceptRollout } from "#rollouts/accept.ts";
import { type NewRollout, type Rollout, ROLLOUT_COLUMNS } from "#rollouts/rollout.ts";

/** A rollout of 48 actions, 49 frames, at the list price. */
export const CHARGE = mils(245);

let customers = 0;

/** A key of a new customer. */
export function newCustomer(db: Database, credits: Mils = mils(1_000_000)): Promise<CreatedKey> {
  customers += 1;
  return createKey(db, { customer: `customer-${customers}@example.com`, initial_credits: credits }, randomBytes);
}

/** More credit, as an operator gives it. The reference is credited once. */
export async function grant(
  db: Database,
  g: { readonly customer_id: string; readonly amount: Mils; readonly reference?: string },
): Promise<void> {
  const reference = g.reference ?? `grant_${randomBytes(8).toString("hex")}`;
  await grantCredit(db, { ...g, reference, operator: "a test", reason: "a test" });
}

/** Makes a customer without a balance owe so much: the money was paid, is gone, and the payment was refunded. */
export async function owe(db: Database, customerId: string, cents: number): Promise<void> {
  const payment = `pi_${randomBytes(8).toString("hex")}`;
  const amount = mils(cents * 100);
  const entry = { customer_id: customerId, reference: payment, detail: "a test" };
  await db.transaction(async (tx) => {
    const topup = newTopupId(randomBytes);
    await tx.query(
      "INSERT INTO topups (id, customer_id, request_id, amount_cents, state) VALUES ($1, $2, 'req_test', $3, 'paid')",
      [topup, customerId, cents],
    );
    await tx.query(
      `INSERT INTO payments (id, topup_id, paid_cents, refunded_cents, credited_mils, clawed_back_mils)
       VALUES ($1, $2, $3, $3, $4, $4)`,
      [payment, topup, cents, amount],
    );
    await credit(tx, { ...entry, amount });
    const gone = { customer_id: customerId, amount: mils(0n - amount), reference: `adjust_${payment}` };
    await adjust(tx, { ...gone, detail: "spent" });
    await recordAction(tx, {
      ...gone,
      operator: "a test",
      action: "credits adjust",
      reason: "spent",
      details: { amount_mils: Number(gone.amount) },
    });
    await clawBack(tx, { ...entry, amount });
  });
}

export const fingerprint = (payload: string): Buffer => createHash("sha256").update(payload).digest();

/** 48 actions that somebody waits for, differing from every other rollout. */
export function newRollout(
  key: Pick<CreatedKey, "key_id" | "customer_id">,
  overrides: Partial<NewRollout> = {},
): NewRollout {
  const id = newRolloutId(randomBytes);
  return {
    id,
    key_id: key.key_id,
    customer_id: key.customer_id,
    request_id: newRequestId(randomBytes),
    route: "predict",
    model: "pusht-small",
    lane: "realtime",
    k: 1,
    actions_per_candidate: 48,
    params: { seed: "0", num_steps: 8, guidance: 0, prompt: "" },
    fingerprint: fingerprint(id),
    idempotency_key: null,
    waiter_id: null,
    deadline_at: new Date(Date.now() + 60_000),
    webhook_url: null,
    dataset: null,
    scored: false,
    ...overrides,
  };
}

export async function accept(
  db: Sql,
  key: Pick<CreatedKey, "key_id" | "customer_id">,
  overrides: Partial<NewRollout> = {},
): Promise<Rollout> {
  const { rollout } = await acceptRollout(db, newRollout(key, overrides));
  return rollout;
}

/** SQL that stores copies of rollouts past all that accepts them: `changed` is JSON about `r`, and may name what `of` joins. */
export const copyRollouts = (changed: string, of: string): string =>
  `INSERT INTO rollouts (${ROLLOUT_COLUMNS})
   SELECT ${ROLLOUT_COLUMNS} FROM (
     SELECT (made.copy).* FROM (SELECT jsonb_populate_record(r, ${changed}) AS copy FROM rollouts r ${of} OFFSET 0) AS made
   ) AS copies`; // OFFSET 0: made once for a row, and not for each of its columns

/** Puts a queued rollout into its first attempt, as a dispatcher does. */
export async function dispatch(sql: Sql, id: RolloutId): Promise<void> {
  await sql.query(
    `UPDATE rollouts SET status = 'dispatched', attempt = attempt + 1, dispatched_at = now(), sweep_at = now()
      WHERE id = $1`,
    [id],
  );
}

export const succeeded = (frames = 49, engineWallMs = 100): Outcome => ({
  kind: "succeeded",
  result: {
    video_keys: ["rollouts/x/1/rollout_000.mp4"],
    frames,
    timings: { engine_wall_ms: engineWallMs, fetch_ms: 1, encode_ms: 1, total_ms: engineWallMs + 2 },
  },
});

export const failed = (framesDelivered = 0): Outcome => ({
  kind: "failed",
  code: "engine_failed",
  message: "the engine failed",
  frames_delivered: framesDelivered,
});

export const cancelled: Outcome = { kind: "cancelled", frames_delivered: 0 };
export const expired: Outcome = { kind: "expired" };

/**
 * For `afterEach`: whatever a test did, the auditor finds nothing. `madeUp`: references of payments that never were, of
 * which the auditor complains with reason, and of which nothing else may be wrong.
 */
export async function assertBooksBalance(db: Database, { madeUp }: { madeUp?: RegExp } = {}): Promise<void> {
  const found = await verifyLedger(db);
  const problems = found.filter((problem) => madeUp === undefined || !madeUp.test(problem));
  if (problems.length > 0) throw new Error(`the books do not balance:\n${problems.join("\n")}`);
}
