import { randomBytes } from "node:crypto";

import { afterAll, afterEach, beforeAll, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import { createKey, revokeKey } from "#keys/keys.ts";
import { balanceOf, transactionsOf } from "#ledger/ledger.ts";
import type { Database } from "#platform/database.ts";
import { acceptRollout } from "#rollouts/accept.ts";
import { ROLLOUT_COLUMNS } from "#rollouts/rollout.ts";
import { settle } from "#rollouts/settle.ts";
import {
  accept,
  assertBooksBalance,
  CHARGE,
  cancelled,
  expired,
  failed,
  fingerprint,
  newCustomer,
  newRollout,
} from "#test/support/ledger.ts";
import { createTestDatabase, type TestDatabase, untilWaitingForLocks } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase({ poolMax: 30 });
  ({ db } = database);
});
afterEach(() => assertBooksBalance(db));
afterAll(() => database.drop());

const rolloutsOf = async (customerId: string): Promise<number> => {
  const rows = await db.query("SELECT id FROM rollouts WHERE customer_id = $1", [customerId]);
  return rows.length;
};

test("debits the exact price and queues the rollout with the price it was charged at", async () => {
  const key = await newCustomer(db, mils(1_000));
  const request = newRollout(key, {
    params: { seed: "18446744073709551615", num_steps: 4, guidance: 1.5, prompt: "p" },
  });
  const { kind, rollout } = await acceptRollout(db, request);

  expect(kind).toBe("accepted");
  expect(rollout).toMatchObject({
    id: request.id,
    status: "queued",
    attempt: 0,
    frames: 49,
    price_mils_per_frame: 5,
    charge_mils: 245n,
    refunded_mils: 0n,
    params: request.params,
    fingerprint: request.fingerprint,
    deadline_at: request.deadline_at,
    finished_at: null,
  });
  expect(await balanceOf(db, key.customer_id)).toBe(755n);
  const [debit] = await transactionsOf(db, key.customer_id, 10);
  expect(debit).toMatchObject({
    kind: "debit",
    amount_mils: -245n,
    balance_after_mils: 755n,
    reference: request.request_id,
    rollout_id: request.id,
    detail: "predict · pusht-small · 49 frames",
  });
});

test("answers with the row as it is stored, whatever characters are in it", async () => {
  const key = await newCustomer(db);
  const awkward = `"quotes", 'more' {braces}, \\ NULL ünï \n`;
  const params = { seed: "18446744073709551615", num_steps: 4, guidance: 1.5, prompt: awkward };
  const overrides = {
    params,
    idempotency_key: awkward,
    waiter_id: "NULL",
    route: "rollouts",
    lane: "bulk",
    k: 3,
  } as const;
  const { rollout } = await acceptRollout(db, newRollout(key, overrides));
  expect(rollout).toMatchObject({ waiter_id: "NULL", params });
  const [stored] = await db.query(`SELECT ${ROLLOUT_COLUMNS} FROM rollouts WHERE id = $1`, [rollout.id]);
  expect(stored).toEqual(rollout);
  const keys = await db.query("SELECT key FROM idempotency_keys WHERE rollout_id = $1", [rollout.id]);
  expect(keys).toEqual([{ key: awkward }]);
  const [debit] = await transactionsOf(db, key.customer_id, 1);
  expect(debit).toMatchObject({ detail: "rollout · pusht-small · 147 frames", created_at: rollout.created_at });
});

test("a batch is one debit for all its candidates", async () => {
  const key = await newCustomer(db, mils(10_000));
  const rollout = await accept(db, key, { route: "batch", k: 8 });
  expect(rollout).toMatchObject({ k: 8, frames: 392, charge_mils: 1_960n });
  const [debit] = await transactionsOf(db, key.customer_id, 10);
  expect(debit).toMatchObject({ amount_mils: -1_960n, detail: "batch · pusht-small · 392 frames" });
});

test("the last mil can be spent, one mil less is refused with both amounts and leaves nothing behind", async () => {
  const exact = await newCustomer(db, CHARGE);
  await accept(db, exact);
  expect(await balanceOf(db, exact.customer_id)).toBe(0n);

  const short = await newCustomer(db, mils(244));
  await expect(accept(db, short, { idempotency_key: "short" })).rejects.toMatchObject({
    status: 402,
    code: "insufficient_credits",
    detail: {
      message: "this costs $0.0245 and the balance is $0.0244: top up and try again",
      balance_mils: 244,
      requested_mils: 245,
      balance_cents: 2,
      requested_cents: 2,
    },
  });
  expect(await balanceOf(db, short.customer_id)).toBe(244n);
  expect(await rolloutsOf(short.customer_id)).toBe(0);
  // The refused request did not use the key up.
  expect(await db.query("SELECT 1 FROM idempotency_keys WHERE key = 'short'")).toEqual([]);
});

test("50 at once with a balance for 20: exactly 20 are accepted", async () => {
  const key = await newCustomer(db, mils(20n * CHARGE));
  const results = await Promise.allSettled(Array.from({ length: 50 }, () => accept(db, key)));

  expect(results.filter((result) => result.status === "fulfilled")).toHaveLength(20);
  for (const result of results.filter((result) => result.status === "rejected")) {
    expect(result.reason).toMatchObject({ code: "insufficient_credits", detail: { balance_mils: 0 } });
  }
  expect(await balanceOf(db, key.customer_id)).toBe(0n);
  expect(await rolloutsOf(key.customer_id)).toBe(20);
});

test("50 copies at once under one idempotency key: one charge, and all get the same rollout", async () => {
  const key = await newCustomer(db, mils(1_000));
  const payload = { idempotency_key: "once", fingerprint: fingerprint("same") };
  const results = await Promise.all(Array.from({ length: 50 }, () => acceptRollout(db, newRollout(key, payload))));

  expect(new Set(results.map(({ rollout }) => rollout.id)).size).toBe(1);
  expect(results.filter(({ kind }) => kind === "accepted")).toHaveLength(1);
  expect(await balanceOf(db, key.customer_id)).toBe(755n);
});

test("a replay wins over a balance that is used up, also while copies race for the last mils", async () => {
  const key = await newCustomer(db, CHARGE);
  const payload = { idempotency_key: "last", fingerprint: fingerprint("last") };
  const results = await Promise.all(Array.from({ length: 10 }, () => acceptRollout(db, newRollout(key, payload))));
  expect(new Set(results.map(({ rollout }) => rollout.id)).size).toBe(1);
  expect(await balanceOf(db, key.customer_id)).toBe(0n);
  await expect(accept(db, key)).rejects.toMatchObject({ code: "insufficient_credits" });
});

test("a replay waits for nobody who debits or refunds", async () => {
  const key = await newCustomer(db);
  const payload = { idempotency_key: "quick", fingerprint: fingerprint("quick") };
  const first = await accept(db, key, payload);
  const holder = await db.pool.connect();
  try {
    await holder.query("BEGIN");
    await holder.query("UPDATE accounts SET seq = seq WHERE customer_id = $1", [key.customer_id]);
    expect((await accept(db, key, payload)).id).toBe(first.id);
    await holder.query("ROLLBACK");
  } finally {
    holder.release();
  }
});

test("the same idempotency key with another payload is refused, whatever the balance", async () => {
  const key = await newCustomer(db, CHARGE);
  await accept(db, key, { idempotency_key: "k", fingerprint: fingerprint("a") });
  await expect(accept(db, key, { idempotency_key: "k", fingerprint: fingerprint("b") })).rejects.toMatchObject({
    status: 422,
    code: "idempotency_mismatch",
  });
});

test("idempotency keys of two customers have nothing to do with each other", async () => {
  const [one, two] = [await newCustomer(db), await newCustomer(db)];
  const first = await accept(db, one, { idempotency_key: "shared" });
  const second = await accept(db, two, { idempotency_key: "shared" });
  expect(second.id).not.toBe(first.id);
});

test.each([
  ["a cancelled", cancelled],
  ["an expired", expired],
])("a failed rollout is replayed, %s one runs anew", async (_, calledOff) => {
  const key = await newCustomer(db);
  const payload = { idempotency_key: "again", fingerprint: fingerprint("again") };
  const gone = await accept(db, key, payload);
  await settle(db, gone.id, null, calledOff);

  const retried = await acceptRollout(db, newRollout(key, payload));
  expect(retried.kind).toBe("accepted");
  expect(retried.rollout.id).not.toBe(gone.id);

  await settle(db, retried.rollout.id, null, failed());
  const replayed = await acceptRollout(db, newRollout(key, payload));
  expect(replayed).toMatchObject({ kind: "replayed", rollout: { id: retried.rollout.id, status: "failed" } });
  expect(await balanceOf(db, key.customer_id)).toBe(1_000_000n);
});

test("an idempotency key counts for 24 hours", async () => {
  const key = await newCustomer(db);
  const payload = { idempotency_key: "day", fingerprint: fingerprint("day") };
  const first = await accept(db, key, payload);
  const age = (hours: number): Promise<unknown> =>
    db.query("UPDATE idempotency_keys SET created_at = now() - $1 * interval '1 hour' WHERE rollout_id = $2", [
      hours,
      first.id,
    ]);

  await age(23.9);
  expect((await accept(db, key, payload)).id).toBe(first.id);
  await age(24.1);
  const anew = await Promise.all(Array.from({ length: 5 }, () => accept(db, key, payload)));
  expect(new Set(anew.map(({ id }) => id)).size).toBe(1);
  expect(anew[0]?.id).not.toBe(first.id);
});

test("a key that is revoked, expired or of another customer debits nothing, and says so", async () => {
  const key = await newCustomer(db);
  const other = await newCustomer(db);
  const expiring = await createKey(
    db,
    { customer: key.customer_id, expires_at: new Date(Date.now() - 1_000) },
    randomBytes,
  );
  await expect(accept(db, expiring)).rejects.toMatchObject({ status: 401, code: "expired_key" });
  await expect(accept(db, { ...key, key_id: other.key_id })).rejects.toMatchObject({ code: "unknown_key" });
  await revokeKey(db, key.key_id);
  await expect(accept(db, key)).rejects.toMatchObject({ status: 401, code: "revoked_key" });
  expect(await balanceOf(db, key.customer_id)).toBe(1_000_000n);
});

test("no debit commits after a revocation has", async () => {
  for (let round = 0; round < 5; round++) {
    const key = await newCustomer(db, mils(1_000_000));
    const debits = Promise.allSettled(Array.from({ length: 40 }, () => accept(db, key)));
    await revokeKey(db, key.key_id);
    const acceptedBefore = await rolloutsOf(key.customer_id);

    const results = await debits;
    const refusals = results.filter((result) => result.status === "rejected").map(({ reason }): unknown => reason);
    expect(await rolloutsOf(key.customer_id)).toBe(acceptedBefore);
    expect(refusals).toHaveLength(40 - acceptedBefore);
    expect(refusals).toEqual(refusals.map(() => expect.objectContaining({ code: "revoked_key" })));
    await expect(accept(db, key)).rejects.toMatchObject({ code: "revoked_key" });
  }
});

test("a debit waits for a revocation that is under way, and sees it", async () => {
  const key = await newCustomer(db);
  const observer = await db.pool.connect();
  try {
    await observer.query("BEGIN");
    await observer.query("UPDATE api_keys SET revoked_at = now() WHERE id = $1", [key.key_id]);
    const debit = accept(db, key);
    debit.catch(() => undefined); // it may fail before anybody looks at it below
    await untilWaitingForLocks(db, 1);
    await observer.query("COMMIT");
    await expect(debit).rejects.toMatchObject({ code: "revoked_key" });
  } finally {
    observer.release();
  }
});

test("a revocation waits for a debit that is under way", async () => {
  const key = await newCustomer(db);
  const holder = await db.pool.connect();
  try {
    await holder.query("BEGIN");
    await holder.query("UPDATE accounts SET seq = seq WHERE customer_id = $1", [key.customer_id]);
    const debit = accept(db, key);
    await untilWaitingForLocks(db, 1);
    let revoked = false;
    const revocation = revokeKey(db, key.key_id).then(() => (revoked = true));
    await untilWaitingForLocks(db, 2);
    expect(revoked).toBe(false);
    await holder.query("ROLLBACK");
    expect(await debit).toMatchObject({ status: "queued" });
    await revocation;
  } finally {
    holder.release();
  }
});

test("each rollout keeps the price that it was charged at", async () => {
  const key = await newCustomer(db);
  const before = await accept(db, key);
  await db.query(
    "INSERT INTO prices (customer_id, mils_per_frame, effective_from, note) VALUES ($1, 7, now(), 'test')",
    [key.customer_id],
  );
  const after = await accept(db, key);
  await settle(db, before.id, null, cancelled);
  await settle(db, after.id, null, cancelled);

  expect(before).toMatchObject({ price_mils_per_frame: 5, charge_mils: 245n });
  expect(after).toMatchObject({ price_mils_per_frame: 7, charge_mils: 343n });
  expect(await balanceOf(db, key.customer_id)).toBe(1_000_000n);
});

test("a customer whose price is zero is served, with an entry of zero", async () => {
  const key = await newCustomer(db, mils(1));
  await db.query(
    "INSERT INTO prices (customer_id, mils_per_frame, effective_from, note) VALUES ($1, 0, now(), 'test')",
    [key.customer_id],
  );
  const free = await accept(db, key);
  expect(free.charge_mils).toBe(0n);
  await settle(db, free.id, null, failed());
  expect((await transactionsOf(db, key.customer_id, 10)).map(({ kind }) => kind)).toEqual(["debit", "credit"]);
});

test("anything that cannot be stored rolls the debit back with it", async () => {
  const key = await newCustomer(db);
  const { id } = await accept(db, key);
  await expect(accept(db, key, { id })).rejects.toThrow(/rollouts_pkey/);
  await expect(accept(db, key, { actions_per_candidate: 0 })).rejects.toThrow(/check constraint/);
  await expect(accept(db, key, { idempotency_key: "x".repeat(256) })).rejects.toThrow(/check constraint/);
  expect(await balanceOf(db, key.customer_id)).toBe(mils(1_000_000n - CHARGE));
});
