import { randomBytes } from "node:crypto";

import * as fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";

import { grantCredit } from "#billing/operator.ts";
import { ApiError } from "#contract/errors.ts";
import type { CustomerId, RolloutId } from "#contract/ids.ts";
import type { Outcome } from "#contract/jobs.ts";
import { mils } from "#contract/mils.ts";
import { createKey, revokeKey } from "#keys/keys.ts";
import { balanceOf, transactionsOf } from "#ledger/ledger.ts";
import { verifyLedger } from "#ledger/verify.ts";
import type { Database } from "#platform/database.ts";
import { acceptRollout } from "#rollouts/accept.ts";
import { markDispatched } from "#rollouts/dispatch.ts";
import { type Leadership, tryLead } from "#rollouts/leader.ts";
import { settle } from "#rollouts/settle.ts";
import { expired, failed, fingerprint, newRollout, succeeded } from "#test/support/ledger.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

import { type Action, createLedgerModel, type Reply } from "./ledger-model.ts";

const RUNS = 40;
const ACTIONS_MAX = 60;

let database: TestDatabase;
let db: Database;
let leader: Leadership;
beforeAll(async () => {
  database = await createTestDatabase({ poolMax: 20 });
  ({ db } = database);
  const leadership = await tryLead(db, "test");
  if (!leadership) throw new Error("nobody else is there to lead");
  leader = leadership;
});
afterAll(async () => {
  await leader.resign();
  await database.drop();
});

const framesDelivered = fc.integer({ min: 0, max: 120 });
const outcomes: fc.Arbitrary<Outcome> = fc.oneof(
  framesDelivered.filter((frames) => frames > 0).map((frames) => succeeded(frames)),
  framesDelivered.map((frames) => failed(frames)),
  framesDelivered.map((frames): Outcome => ({ kind: "cancelled", frames_delivered: frames })),
  fc.constant(expired),
);
/** Small ranges, so that actions meet: the same payment, idempotency key, payload and rollout again and again. */
const actions: fc.Arbitrary<Action> = fc.oneof(
  fc.record({
    do: fc.constant("credit" as const),
    amount: fc.oneof(fc.constantFrom(245, 500), fc.integer({ min: 1, max: 3_000 })),
    payment: fc.nat({ max: 9 }),
  }),
  fc.record({
    do: fc.constant("accept" as const),
    key: fc.constantFrom(0 as const, 1 as const),
    k: fc.integer({ min: 1, max: 3 }),
    actions: fc.constantFrom(12, 24, 48),
    idempotency: fc.option(fc.nat({ max: 3 })),
    payload: fc.nat({ max: 1 }),
  }),
  fc.record({ do: fc.constant("dispatch" as const), rollout: fc.nat({ max: 8 }) }),
  fc.record({
    do: fc.constant("settle" as const),
    rollout: fc.nat({ max: 8 }),
    attempt: fc.constantFrom(null, null, 0, 1, 2),
    outcome: outcomes,
  }),
);
const histories = fc
  .tuple(fc.array(actions, { maxLength: ACTIONS_MAX }), fc.option(fc.nat({ max: ACTIONS_MAX })))
  // At most one revocation, else most histories would be of a customer who may do nothing.
  .map(([list, revokeAt]): Action[] => {
    if (revokeAt !== null) list.splice(revokeAt, 0, { do: "revoke", key: 0 });
    return list;
  });

/** A fresh customer in the real system, driven by the model's actions. */
async function createRealLedger(): Promise<{ customer_id: CustomerId; apply(action: Action): Promise<Reply> }> {
  const customer = `cus_${randomBytes(8).toString("hex")}`;
  const keys = [
    await createKey(db, { customer }, randomBytes),
    await createKey(db, { customer }, randomBytes),
  ] as const;
  const { customer_id } = keys[0];
  const rollouts: RolloutId[] = [];

  async function apply(action: Action): Promise<Reply> {
    if (action.do === "credit") {
      const reference = `${customer}-${action.payment}`;
      const by = { operator: "a test", reason: "history" };
      const { credited } = await grantCredit(db, { customer_id, amount: mils(action.amount), reference, ...by });
      return credited ? "done" : "nothing";
    }
    if (action.do === "accept") return await accept(action);
    if (action.do === "revoke") {
      await revokeKey(db, keys[action.key].key_id);
      return "done";
    }
    const id = rollouts[action.rollout];
    if (id === undefined) return "nothing";
    const done =
      action.do === "dispatch"
        ? (await markDispatched(db, leader.epoch, [id])).length === 1
        : (await settle(db, id, action.attempt, action.outcome)).settled;
    return done ? "done" : "nothing";
  }

  async function accept(action: Action & { do: "accept" }): Promise<Reply> {
    const { kind, rollout } = await acceptRollout(
      db,
      newRollout(keys[action.key], {
        k: action.k,
        actions_per_candidate: action.actions,
        idempotency_key: action.idempotency === null ? null : `key-${action.idempotency}`,
        fingerprint: fingerprint(`payload ${action.payload}`),
      }),
    );
    if (kind === "replayed") return { replayed: rollouts.indexOf(rollout.id) };
    return { accepted: rollouts.push(rollout.id) - 1 };
  }

  return {
    customer_id,
    apply: (action) =>
      apply(action).catch((error: unknown) => {
        if (error instanceof ApiError && error.code === "insufficient_credits") return "too little";
        if (error instanceof ApiError && error.code === "idempotency_mismatch") return "mismatch";
        if (error instanceof ApiError && error.code === "revoked_key") return "revoked";
        if (error instanceof Error && error.message.includes("stands for a credit")) return "conflict";
        throw error;
      }),
  };
}

test("any history of credits, debits, settlements and revocations gives the replies and books of the model", async () => {
  await fc.assert(
    fc.asyncProperty(histories, async (history) => {
      const model = createLedgerModel();
      const real = await createRealLedger();
      for (const action of history) {
        expect({ action, reply: await real.apply(action) }).toEqual({ action, reply: model.apply(action) });
      }

      expect(await balanceOf(db, real.customer_id)).toBe(BigInt(model.balance));
      const entries = await transactionsOf(db, real.customer_id, 200);
      expect(entries.toReversed().map(({ kind, amount_mils }) => [kind, Number(amount_mils)])).toEqual(model.entries);
      const stored = await db.query<{ status: string; attempt: number; refunded: number }>(
        `SELECT status, attempt, refunded_mils::int AS refunded FROM rollouts WHERE customer_id = $1
          ORDER BY (SELECT seq FROM ledger_entries WHERE rollout_id = rollouts.id AND kind = 'debit')`,
        [real.customer_id],
      );
      expect(stored).toEqual(model.rollouts.map(({ status, attempt, refunded }) => ({ status, attempt, refunded })));
    }),
    { numRuns: RUNS },
  );
  expect(await verifyLedger(db)).toEqual([]);
}, 60_000);

test("whatever happens at once, the books balance and nobody's balance was ever negative", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(actions, { minLength: 10, maxLength: ACTIONS_MAX }), async (history) => {
      const real = await createRealLedger();
      await real.apply({ do: "credit", amount: 2_000, payment: 99 });
      await Promise.all(history.map((action) => real.apply(action)));

      const entries = await transactionsOf(db, real.customer_id, 200);
      const sum = entries.reduce((total, { amount_mils }) => total + amount_mils, 0n);
      expect(await balanceOf(db, real.customer_id)).toBe(sum);
      for (const { balance_after_mils } of entries) expect(balance_after_mils).toBeGreaterThanOrEqual(0n);
    }),
    { numRuns: RUNS },
  );
  expect(await verifyLedger(db)).toEqual([]);
}, 60_000);
