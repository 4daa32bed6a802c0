/** Customers with credit and rollouts for tests of what happens behind the gateway. */
import { createHash, randomBytes } from "node:crypto";

import { newRequestId, newRolloutId, type RolloutId } from "#contract/ids.ts";
import type { Outcome } from "#contract/jobs.ts";
import { type Mils, mils } from "#contract/mils.ts";
import { type CreatedKey, createKey } from "#keys/keys.ts";
import { verifyLedger } from "#ledger/verify.ts";
import type { Database, Sql } from "#platform/database.ts";
import { acceptRollout, type NewRollout } from "#rollouts/accept.ts";
import type { Rollout } from "#rollouts/rollout.ts";

/** A rollout of 48 actions, 49 frames, at the list price. */
export const CHARGE = mils(245);

let customers = 0;

/** A key of a new customer. */
export function newCustomer(db: Database, credits: Mils = mils(1_000_000)): Promise<CreatedKey> {
  customers += 1;
  return createKey(db, { customer: `customer-${customers}@example.com`, initial_credits: credits }, randomBytes);
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

/** For `afterEach`: whatever a test did, the auditor finds nothing. */
export async function assertBooksBalance(db: Database): Promise<void> {
  const problems = await verifyLedger(db);
  if (problems.length > 0) throw new Error(`the books do not balance:\n${problems.join("\n")}`);
}
