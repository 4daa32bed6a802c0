/** Any list of rollouts, accepted many a statement, gives the answers and the books of the same list one at a time. */
import { randomBytes } from "node:crypto";

import * as fc from "fast-check";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import { type CreatedKey, createKey, revokeKey } from "#keys/keys.ts";
import { balanceOf, transactionsOf } from "#ledger/ledger.ts";
import type { Database } from "#platform/database.ts";
import { type Accepted, acceptRollout } from "#rollouts/accept.ts";
import type { NewRollout } from "#rollouts/rollout.ts";
import { createAcceptor } from "#rollouts/acceptor.ts";
import { assertBooksBalance, fingerprint, newCustomer, newRollout } from "#test/support/ledger.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

const RUNS = 100;
const TIMEOUT_MS = 120_000;
const ROLLOUTS_MAX = 24;

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
});
afterEach(() => assertBooksBalance(db));
afterAll(() => database.drop());

const lists = fc.array(
  fc.record({
    key: fc.constantFrom(0, 0, 1, 2),
    k: fc.constantFrom(1, 1, 2, 7),
    actions: fc.integer({ min: 1, max: 3 }),
    idempotency: fc.option(fc.nat({ max: 3 })),
    payload: fc.nat({ max: 1 }),
    /** Longer than the database takes. */
    bad: fc.constantFrom(false, false, false, false, true),
  }),
  { minLength: 1, maxLength: ROLLOUTS_MAX },
);
type Wanted = typeof lists extends fc.Arbitrary<(infer T)[]> ? T : never;

/** A customer with two good keys and a revoked one, and its rollouts. */
async function prepare(balance: bigint, list: readonly Wanted[]): Promise<[CreatedKey, NewRollout[]]> {
  const first = await newCustomer(db, mils(balance));
  const { customer_id } = first;
  const second = await createKey(db, { customer: customer_id }, randomBytes);
  const revoked = await createKey(db, { customer: customer_id }, randomBytes);
  await revokeKey(db, revoked.key_id);
  const keys = [first, second, revoked];
  const rollouts = list.map((wanted) =>
    newRollout(keys[wanted.key] ?? first, {
      k: wanted.k,
      actions_per_candidate: wanted.actions,
      idempotency_key: wanted.idempotency === null ? null : `key-${wanted.idempotency}`,
      fingerprint: fingerprint(`payload ${wanted.payload}`),
      model: wanted.bad ? "bad\x1fmodel" : "pusht-small",
    }),
  );
  return [first, rollouts];
}

/** What a caller sees, with rollouts named by their place in the list. */
async function answer(asked: Promise<Accepted>, rollouts: readonly NewRollout[]): Promise<unknown> {
  return asked.then(
    ({ kind, rollout }) => [kind, rollouts.findIndex(({ id }) => id === rollout.id), rollout.charge_mils],
    (error: { code?: string; detail?: unknown }) => [error.code, error.code === "23514" ? null : error.detail],
  );
}

async function books(key: CreatedKey, rollouts: readonly NewRollout[]): Promise<unknown> {
  const entries = await transactionsOf(db, key.customer_id, 2 * ROLLOUTS_MAX);
  return {
    balance: await balanceOf(db, key.customer_id),
    entries: entries.map(({ seq, kind, amount_mils, balance_after_mils, rollout_id }) => {
      return [seq, kind, amount_mils, balance_after_mils, rollouts.findIndex(({ id }) => id === rollout_id)];
    }),
  };
}

test("many a statement is the same as one at a time, in the same order", { timeout: TIMEOUT_MS }, async () => {
  await fc.assert(
    fc.asyncProperty(lists, fc.bigInt(1n, 400n), fc.integer({ min: 1, max: 9 }), async (list, balance, max) => {
      const [oneKey, ones] = await prepare(balance, list);
      const answersOfOne: unknown[] = [];
      for (const r of ones) answersOfOne.push(await answer(acceptRollout(db, r), ones));

      const [manyKey, many] = await prepare(balance, list);
      const acceptor = createAcceptor(db, { perStatementMax: max });
      const answersOfMany = await Promise.all(many.map((r) => answer(acceptor.accept(r), many)));

      expect(answersOfMany).toEqual(answersOfOne);
      expect(await books(manyKey, many)).toEqual(await books(oneKey, ones));
    }),
    { numRuns: RUNS },
  );
});
