import { afterAll, afterEach, beforeAll, expect, test } from "vitest";

import type { Outcome } from "#contract/jobs.ts";
import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { balanceOf, transactionsOf } from "#ledger/ledger.ts";
import type { Database } from "#platform/database.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import { settle } from "#rollouts/settle.ts";
import {
  accept,
  assertBooksBalance,
  cancelled,
  dispatch,
  expired,
  failed,
  fingerprint,
  newCustomer,
  succeeded,
} from "#test/support/ledger.ts";
import { createTestDatabase, type TestDatabase, untilWaitingForLocks } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase({ poolMax: 20 });
  ({ db } = database);
});
afterEach(() => assertBooksBalance(db));
afterAll(() => database.drop());

async function dispatched(k = 1): Promise<{ key: CreatedKey; rollout: Rollout }> {
  const key = await newCustomer(db, mils(10_000));
  const rollout = await accept(db, key, { k });
  await dispatch(db, rollout.id);
  return { key, rollout };
}

test("a success keeps the charge and stores the result", async () => {
  const { key, rollout } = await dispatched();
  const settled = await settle(db, rollout.id, 1, succeeded());

  expect(settled).toMatchObject({
    settled: true,
    rollout: { status: "succeeded", frames_delivered: 49, refunded_mils: 0n, result: { frames: 49 }, error_code: null },
  });
  expect(settled.rollout?.finished_at).toBeInstanceOf(Date);
  expect(await balanceOf(db, key.customer_id)).toBe(9_755n);
  expect((await transactionsOf(db, key.customer_id, 10)).map(({ kind }) => kind)).toEqual(["debit", "credit"]);
});

test("a failure is refunded in full, with the reason kept", async () => {
  const { key, rollout } = await dispatched();
  expect(await settle(db, rollout.id, 1, failed())).toMatchObject({
    settled: true,
    rollout: {
      status: "failed",
      frames_delivered: 0,
      refunded_mils: 245n,
      error_code: "engine_failed",
      error_message: "the engine failed",
    },
  });
  expect(await balanceOf(db, key.customer_id)).toBe(10_000n);
  expect((await transactionsOf(db, key.customer_id, 1))[0]).toMatchObject({
    kind: "refund",
    amount_mils: 245n,
    reference: rollout.request_id,
    detail: "refund · pusht-small · 49 frames",
  });
});

test.each([
  ["20 of 49 frames delivered before a failure", failed(20), 20, 145n],
  ["all frames delivered before a failure", failed(49), 49, 0n],
  ["more frames than were paid for", failed(50), 49, 0n],
  ["a cancellation after 10 frames", { kind: "cancelled", frames_delivered: 10 }, 10, 195n],
  ["a success that brought fewer frames than it was paid for", succeeded(40), 40, 45n],
] satisfies [string, Outcome, number, bigint][])(
  "%s: what was not delivered is refunded",
  async (_, outcome, delivered, refund) => {
    const { key, rollout } = await dispatched();
    const settled = await settle(db, rollout.id, 1, outcome);
    expect(settled.rollout).toMatchObject({ frames_delivered: delivered, refunded_mils: refund });
    expect(await balanceOf(db, key.customer_id)).toBe(10_000n - 245n + refund);
  },
);

test.each([
  ["failed", failed()],
  ["cancelled", cancelled],
  ["expired", expired],
])("a rollout that never ran can be %s, refunded in full", async (status, outcome) => {
  const key = await newCustomer(db, mils(10_000));
  const rollout = await accept(db, key);
  expect(await settle(db, rollout.id, null, outcome)).toMatchObject({ settled: true, rollout: { status } });
  expect(await balanceOf(db, key.customer_id)).toBe(10_000n);
});

test("a rollout that was never dispatched cannot succeed", async () => {
  const key = await newCustomer(db);
  const rollout = await accept(db, key);
  for (const attempt of [null, 0, 1]) {
    expect(await settle(db, rollout.id, attempt, succeeded())).toMatchObject({
      settled: false,
      rollout: { status: "queued" },
    });
  }
});

test("an outcome of another attempt changes nothing", async () => {
  const { key, rollout } = await dispatched();
  expect(await settle(db, rollout.id, 2, failed())).toMatchObject({
    settled: false,
    rollout: { status: "dispatched" },
  });
  expect(await settle(db, rollout.id, 0, succeeded())).toMatchObject({ settled: false });
  expect(await balanceOf(db, key.customer_id)).toBe(9_755n);
});

test("ten settlements at once: one settles, one refund", async () => {
  const { key, rollout } = await dispatched();
  const outcomes = [
    failed(),
    cancelled,
    expired,
    failed(3),
    cancelled,
    failed(),
    expired,
    failed(),
    cancelled,
    failed(),
  ];
  const results = await Promise.all(outcomes.map((outcome) => settle(db, rollout.id, 1, outcome)));

  expect(results.filter(({ settled }) => settled)).toHaveLength(1);
  const ends = new Set(results.map((result) => result.rollout?.status));
  expect(ends.size).toBe(1); // all are told the same end
  const refunds = (await transactionsOf(db, key.customer_id, 10)).filter(({ kind }) => kind === "refund");
  expect(refunds).toHaveLength(1);
});

test("the first end is the end: later outcomes are told it", async () => {
  const { key, rollout } = await dispatched();
  await settle(db, rollout.id, 1, succeeded());
  for (const outcome of [succeeded(), failed(), cancelled, expired]) {
    expect(await settle(db, rollout.id, null, outcome)).toMatchObject({
      settled: false,
      rollout: { status: "succeeded", refunded_mils: 0n },
    });
  }
  expect(await balanceOf(db, key.customer_id)).toBe(9_755n);
});

test("settling what does not exist is told, not thrown", async () => {
  const { rollout } = await dispatched();
  const other = rollout.id.replace(/.$/, (c) => (c === "0" ? "1" : "0")) as typeof rollout.id;
  expect(await settle(db, other, null, expired)).toEqual({ settled: false, rollout: null });
});

test("settling inside a transaction that rolls back settles nothing", async () => {
  const { key, rollout } = await dispatched();
  await expect(
    db.transaction(async (tx) => {
      await settle(tx, rollout.id, 1, failed());
      throw new Error("crashed");
    }),
  ).rejects.toThrow("crashed");
  expect(await balanceOf(db, key.customer_id)).toBe(9_755n);
  expect(await settle(db, rollout.id, 1, failed())).toMatchObject({ settled: true });
});

test("a cancellation and a retry under its idempotency key that meet at the account do not deadlock", async () => {
  const key = await newCustomer(db, mils(10_000));
  const payload = { idempotency_key: "meet", fingerprint: fingerprint("meet") };
  const first = await accept(db, key, { fingerprint: payload.fingerprint });

  const holder = await db.pool.connect();
  await holder.query("BEGIN");
  await holder.query("UPDATE accounts SET seq = seq WHERE customer_id = $1", [key.customer_id]);
  const retried = accept(db, key, payload); // first in the account's line, then in need of the idempotency key
  await untilWaitingForLocks(db, 1);
  // As if the first had come under that key while the retry was on its way: one that sees the key used does not wait.
  await db.query("INSERT INTO idempotency_keys (customer_id, key, fingerprint, rollout_id) VALUES ($1, $2, $3, $4)", [
    key.customer_id,
    payload.idempotency_key,
    payload.fingerprint,
    first.id,
  ]);
  const settled = settle(db, first.id, null, cancelled); // holds that key only if it did not wait for the account first
  await untilWaitingForLocks(db, 2);
  await holder.query("ROLLBACK");
  holder.release();

  expect(await settled).toMatchObject({ settled: true });
  // Whoever came first, the customer pays for what runs: the retry was told of the rollout that was about to end, or ran anew.
  expect(["queued", "cancelled"]).toContain((await retried).status);
});

test("debits, settlements and replays of one customer at once neither deadlock nor lose a mil", async () => {
  const key = await newCustomer(db, mils(100_000));
  const life = async (n: number): Promise<void> => {
    const idempotency = n % 3 === 0 ? `key-${n % 6}` : null;
    const rollout = await accept(db, key, { idempotency_key: idempotency }).catch((error: { code?: string }) => {
      if (error.code !== "idempotency_mismatch") throw error;
      return null; // another life holds that key
    });
    if (!rollout) return;
    await Promise.all([
      settle(db, rollout.id, null, cancelled),
      settle(db, rollout.id, null, failed(n % 50)),
      settle(db, rollout.id, null, expired),
    ]);
  };
  await Promise.all(Array.from({ length: 80 }, (_, n) => life(n)));
  const unfinished = await db.query("SELECT id FROM rollouts WHERE finished_at IS NULL AND customer_id = $1", [
    key.customer_id,
  ]);
  expect(unfinished).toEqual([]);
});
