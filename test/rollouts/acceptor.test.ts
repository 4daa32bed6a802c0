import { randomBytes } from "node:crypto";

import { afterAll, afterEach, beforeAll, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import { type CreatedKey, createKey, revokeKey } from "#keys/keys.ts";
import { balanceOf, transactionsOf } from "#ledger/ledger.ts";
import { createDatabase, type Database, type Sql } from "#platform/database.ts";
import { acceptRollout } from "#rollouts/accept.ts";
import type { NewRollout } from "#rollouts/rollout.ts";
import { type Acceptor, createAcceptor } from "#rollouts/acceptor.ts";
import { assertBooksBalance, CHARGE, fingerprint, newCustomer, newRollout } from "#test/support/ledger.ts";
import { createTestDatabase, silentLog, type TestDatabase, untilWaitingForLocks } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase({ poolMax: 20 });
  ({ db } = database);
});
afterEach(() => assertBooksBalance(db));
afterAll(() => database.drop());

/** Passes statements on and notes the rollouts of each that accepts some. */
function watched(sql: Sql): Sql & { readonly batches: string[][] } {
  const batches: string[][] = [];
  return {
    batches,
    query: (text, params) => {
      if (text.includes("ledger_chain")) batches.push(params?.[1] as string[]); // the ids, see ACCEPT
      return sql.query(text, params);
    },
  };
}

/** Runs `during` while somebody else holds the customer's account, so that one statement waits and others gather. */
async function whileHeld(key: CreatedKey, during: () => Promise<void>): Promise<void> {
  const holder = await db.pool.connect();
  try {
    await holder.query("BEGIN");
    await holder.query("UPDATE accounts SET seq = seq WHERE customer_id = $1", [key.customer_id]);
    await during();
  } finally {
    await holder.query("ROLLBACK");
    holder.release();
  }
}

const accepted = async (ids: readonly string[]): Promise<string[]> => {
  const rows = await db.query<{ id: string }>("SELECT id FROM rollouts WHERE id = ANY ($1)", [ids]);
  return rows.map(({ id }) => id);
};

/** "accepted", "replayed" or the code of the ApiError. */
async function told(asked: Promise<{ kind: string }>): Promise<string> {
  return asked.then(
    ({ kind }) => kind,
    (error: { code?: string }) => String(error.code),
  );
}

const setPrice = (key: CreatedKey, price: number): Promise<unknown> =>
  db.query("INSERT INTO prices (customer_id, mils_per_frame, effective_from, note) VALUES ($1, $2, now(), 'test')", [
    key.customer_id,
    price,
  ]);

test("the first goes at once, those who come meanwhile go together, in the order of their coming", async () => {
  const key = await newCustomer(db);
  const sql = watched(db);
  const acceptor = createAcceptor(sql);
  const rollouts = Array.from({ length: 41 }, () => newRollout(key));
  const results = await Promise.all(rollouts.map((r) => acceptor.accept(r)));

  expect(results.map(({ kind, rollout }) => `${kind} ${rollout.id}`)).toEqual(
    rollouts.map(({ id }) => `accepted ${id}`),
  );
  expect(sql.batches.map((ids) => ids.length)).toEqual([1, 40]);
  const debits = (await transactionsOf(db, key.customer_id, 100)).filter(({ kind }) => kind === "debit").toReversed();
  expect(debits.map(({ rollout_id }) => rollout_id)).toEqual(rollouts.map(({ id }) => id));
  // Afterwards the account is idle again, and nobody gathers.
  await acceptor.accept(newRollout(key));
  expect(sql.batches.at(-1)).toHaveLength(1);
});

test("a statement takes no more than its bound, and who comes beyond what may gather is told so at once", async () => {
  const key = await newCustomer(db);
  const sql = watched(db);
  const acceptor = createAcceptor(sql, { perStatementMax: 4, gatheredMax: 10 });
  const results = await Promise.all(Array.from({ length: 13 }, () => told(acceptor.accept(newRollout(key)))));
  expect(results).toEqual([...Array.from({ length: 11 }, () => "accepted"), "no_capacity", "no_capacity"]);
  expect(sql.batches.map((ids) => ids.length)).toEqual([1, 4, 4, 2]);
});

test("one account that waits keeps no other from being served", async () => {
  const [busy, other] = [await newCustomer(db), await newCustomer(db)];
  const acceptor = createAcceptor(db);
  let waiting: Promise<unknown> | undefined;
  await whileHeld(busy, async () => {
    waiting = Promise.all(Array.from({ length: 5 }, () => acceptor.accept(newRollout(busy))));
    await untilWaitingForLocks(db, 1);
    expect(await told(acceptor.accept(newRollout(other)))).toBe("accepted");
  });
  await waiting;
});

test.each([
  ["one gateway", 1],
  ["three gateways", 3],
])("the last mils from 50 callers of %s: exactly as many are accepted as are affordable", async (_, gateways) => {
  const key = await newCustomer(db, mils(20n * CHARGE));
  const acceptors = Array.from({ length: gateways }, () => createAcceptor(db));
  const callers = acceptors.flatMap((acceptor) => Array.from({ length: Math.ceil(50 / gateways) }, () => acceptor));
  const results = await Promise.all(callers.slice(0, 50).map((acceptor) => told(acceptor.accept(newRollout(key)))));
  expect(results.filter((result) => result === "accepted")).toHaveLength(20);
  expect(results.filter((result) => result === "insufficient_credits")).toHaveLength(30);
  expect(await balanceOf(db, key.customer_id)).toBe(0n);
});

test("a small affordable debit does not fail behind a large one", async () => {
  const key = await newCustomer(db, mils(3n * CHARGE));
  const sql = watched(db);
  const acceptor = createAcceptor(sql);
  const ks = [1, 1, 4, 2, 1, 1];
  const results = await Promise.allSettled(ks.map((k) => acceptor.accept(newRollout(key, { k }))));
  expect(results.map(({ status }) => status === "fulfilled")).toEqual([true, true, false, false, true, false]);
  // Each refusal names what the balance was when its turn came.
  expect(results.map((result) => (result.status === "rejected" ? (result.reason as unknown) : null))).toMatchObject([
    null,
    null,
    { detail: { requested_mils: 980, balance_mils: 245 } },
    { detail: { requested_mils: 490, balance_mils: 245 } },
    null,
    { detail: { requested_mils: 245, balance_mils: 0 } },
  ]);
  expect(sql.batches.map((ids) => ids.length)).toEqual([1, 5]);
});

test("keys of one customer share a statement; the unusable ones among them refuse their own rollouts only", async () => {
  const one = await newCustomer(db);
  const customer = one.customer_id;
  const two = await createKey(db, { customer }, randomBytes);
  const revoked = await createKey(db, { customer }, randomBytes);
  const expired = await createKey(db, { customer, expires_at: new Date(Date.now() - 1_000) }, randomBytes);
  const stranger = await newCustomer(db);
  const sql = watched(db);
  const acceptor = createAcceptor(sql);
  let results: Promise<string[]> | undefined;
  await whileHeld(one, async () => {
    const keys = [one, two, revoked, expired, { ...stranger, customer_id: customer }, one, two];
    results = Promise.all(keys.map((key) => told(acceptor.accept(newRollout(key)))));
    await untilWaitingForLocks(db, 1);
    await revokeKey(db, revoked.key_id);
  });
  expect(await results).toEqual([
    "accepted",
    "accepted",
    "revoked_key",
    "expired_key",
    "unknown_key",
    "accepted",
    "accepted",
  ]);
  expect(sql.batches.slice(0, 2).map((ids) => ids.length)).toEqual([1, 6]);
  expect(await balanceOf(db, stranger.customer_id)).toBe(1_000_000n);
});

test("no debit commits after the revocation of its key has, in a batch either", async () => {
  for (let round = 0; round < 5; round++) {
    const key = await newCustomer(db);
    const acceptor = createAcceptor(db, { perStatementMax: 7 });
    const asked = Array.from({ length: 60 }, () => newRollout(key));
    const results = Promise.all(asked.map((r) => told(acceptor.accept(r))));
    await revokeKey(db, key.key_id);
    const before = (await accepted(asked.map(({ id }) => id))).length;
    expect((await results).filter((result) => result === "accepted")).toHaveLength(before);
    expect((await results).filter((result) => result === "revoked_key")).toHaveLength(60 - before);
  }
});

test("copies under one idempotency key, inside and across statements and gateways: one charge, one rollout", async () => {
  const key = await newCustomer(db);
  const sqls = [watched(db), watched(db)];
  const [one, two] = sqls.map((sql) => createAcceptor(sql, { perStatementMax: 8 })) as [Acceptor, Acceptor]; // of two
  const payload = { idempotency_key: "once", fingerprint: fingerprint("same") };
  const asked = Array.from({ length: 40 }, (_, n) => newRollout(key, n % 3 === 0 ? {} : payload));
  const results = await Promise.all(asked.map((r, n) => (n % 2 === 0 ? one : two).accept(r)));

  const copies = results.filter((_, n) => n % 3 !== 0);
  expect(new Set(copies.map((result) => result.rollout.id)).size).toBe(1);
  expect(copies.filter((result) => result.kind === "accepted")).toHaveLength(1);
  expect(results.filter((_, n) => n % 3 === 0).every((result) => result.kind === "accepted")).toBe(true);
  expect(await balanceOf(db, key.customer_id)).toBe(mils(1_000_000n - 15n * CHARGE));
  const idempotent = new Set(asked.filter((r) => r.idempotency_key !== null).map(({ id }): string => id));
  for (const batch of sqls.flatMap(({ batches }) => batches)) {
    expect(batch.filter((id) => idempotent.has(id)).length).toBeLessThanOrEqual(1);
  }
});

test("an idempotency key with another payload refuses its own rollout only", async () => {
  const key = await newCustomer(db);
  await acceptRollout(db, newRollout(key, { idempotency_key: "k", fingerprint: fingerprint("a") }));
  const acceptor = createAcceptor(db);
  const results = await Promise.all(
    [
      {},
      { idempotency_key: "k", fingerprint: fingerprint("b") },
      {},
      { idempotency_key: "k", fingerprint: fingerprint("a") },
    ].map((overrides) => told(acceptor.accept(newRollout(key, overrides)))),
  );
  expect(results).toEqual(["accepted", "idempotency_mismatch", "accepted", "replayed"]);
});

test("an idempotency key that another gateway uses while the statement waits costs the others nothing", async () => {
  const key = await newCustomer(db);
  const payload = { idempotency_key: "taken", fingerprint: fingerprint("taken") };
  const { rollout: first } = await acceptRollout(db, newRollout(key, { fingerprint: payload.fingerprint }));
  let statements = 0;
  const acceptor = createAcceptor({
    query: async (text, params) => {
      statements += 1;
      if (statements !== 2) return db.query(text, params);
      // That of the nine: its key is free when it begins, and used when it has waited for the account.
      let rows: Promise<never[]> | undefined;
      await whileHeld(key, async () => {
        rows = db.query(text, params);
        rows.catch(() => undefined); // it may fail before it is awaited below
        await untilWaitingForLocks(db, 1);
        await db.query(
          "INSERT INTO idempotency_keys (customer_id, key, fingerprint, rollout_id) VALUES ($1, $2, $3, $4)",
          [key.customer_id, payload.idempotency_key, payload.fingerprint, first.id],
        );
      });
      return (await rows) ?? [];
    },
  });
  const asked = Array.from({ length: 10 }, (_, n) => newRollout(key, n === 5 ? payload : {}));
  const results = await Promise.all(asked.map((r) => acceptor.accept(r)));
  expect(results.map(({ kind }) => kind)).toEqual(asked.map((_, n) => (n === 5 ? "replayed" : "accepted")));
  expect(results[5]?.rollout.id).toBe(first.id);
  expect(await balanceOf(db, key.customer_id)).toBe(mils(1_000_000n - 10n * CHARGE));
});

test("each is charged at the price in force when its statement ran", async () => {
  const key = await newCustomer(db);
  const acceptor = createAcceptor(db);
  let results: Promise<{ rollout: { price_mils_per_frame: number } }[]> | undefined;
  await whileHeld(key, async () => {
    results = Promise.all(Array.from({ length: 3 }, () => acceptor.accept(newRollout(key))));
    await untilWaitingForLocks(db, 1);
    await setPrice(key, 7);
  });
  expect((await results)?.map(({ rollout }) => rollout.price_mils_per_frame)).toEqual([5, 7, 7]);
  expect(await balanceOf(db, key.customer_id)).toBe(mils(1_000_000 - 49 * (5 + 7 + 7)));
});

test("what cannot be stored fails alone", async () => {
  const key = await newCustomer(db);
  const sql = watched(db);
  const acceptor = createAcceptor(sql);
  const bad = { idempotency_key: "x".repeat(256) };
  const separator = { request_id: "req\x1f1" as NewRollout["request_id"] }; // nobody else's type allows it
  const asked = Array.from({ length: 33 }, (_, n) => newRollout(key, n === 7 ? bad : n === 20 ? separator : {}));
  const results = await Promise.allSettled(asked.map((r) => acceptor.accept(r)));
  expect(results.flatMap(({ status }, n) => (status === "rejected" ? [n] : []))).toEqual([7, 20]);
  for (const n of [7, 20]) expect(results[n]).toMatchObject({ reason: { message: /check constraint/ } });
  // Found by halves, not one by one.
  expect(sql.batches.length).toBeLessThan(25);
});

test("a connection cut while a statement waits: all of it are told, nobody that it succeeded, and the next are served", async () => {
  const key = await newCustomer(db);
  const own = createDatabase({ url: database.url, log: silentLog, poolMax: 1 });
  const [backend] = await own.query<{ pid: number }>("SELECT pg_backend_pid() AS pid");
  const acceptor = createAcceptor(own);
  const asked = Array.from({ length: 20 }, () => newRollout(key));
  let results: Promise<PromiseSettledResult<{ kind: string }>[]> | undefined;
  await whileHeld(key, async () => {
    results = Promise.allSettled(asked.map((r) => acceptor.accept(r)));
    await untilWaitingForLocks(db, 1);
    await db.query("SELECT pg_terminate_backend($1)", [backend?.pid]);
    await expect.poll(() => db.query("SELECT 1 FROM pg_stat_activity WHERE pid = $1", [backend?.pid])).toEqual([]);
  });
  const settled = (await results) ?? [];
  expect(settled[0]).toMatchObject({ status: "rejected", reason: { code: "57P01" } });
  const told = asked.flatMap(({ id }, n) => (settled[n]?.status === "fulfilled" ? [id] : []));
  expect((await accepted(asked.map(({ id }) => id))).toSorted()).toEqual(told.toSorted());
  expect((await acceptor.accept(newRollout(key))).kind).toBe("accepted");
  await own.stop();
});

test("an answer lost after the commit is told to all of the statement as unknown, and to nobody else", async () => {
  const key = await newCustomer(db);
  let losing = false;
  const acceptor = createAcceptor({
    query: async (text, params) => {
      const rows = await db.query(text, params);
      if (losing) throw new Error("Connection terminated unexpectedly");
      losing = true;
      return rows as never; // as the real one, which knows the rows' type as little
    },
  });
  const asked = Array.from({ length: 6 }, () => newRollout(key));
  const results = await Promise.allSettled(asked.map((r) => acceptor.accept(r)));
  expect(results.map(({ status }) => status)).toEqual(["fulfilled", ...Array.from({ length: 5 }, () => "rejected")]);
  for (const result of results.slice(1)) {
    expect(result).toMatchObject({ reason: { message: "Connection terminated unexpectedly" } });
  }
  expect(await accepted(asked.map(({ id }) => id))).toHaveLength(6);
});

test("a deadlock that PostgreSQL broke is tried again, unseen by the callers", async () => {
  const key = await newCustomer(db);
  const acceptor = createAcceptor(db);
  const other = await db.pool.connect();
  try {
    // Whoever locks the account before the key meets a debit, which does it the other way round.
    await other.query("BEGIN");
    await other.query("SET LOCAL deadlock_timeout = '60s'"); // so that the debit is the one that notices
    await other.query("UPDATE accounts SET seq = seq WHERE customer_id = $1", [key.customer_id]);
    const asked = [acceptor.accept(newRollout(key))];
    await untilWaitingForLocks(db, 1);
    asked.push(...Array.from({ length: 9 }, () => acceptor.accept(newRollout(key))));
    await other.query("UPDATE api_keys SET label = 'met' WHERE id = $1", [key.key_id]);
    await other.query("COMMIT");
    expect((await Promise.all(asked)).map(({ kind }) => kind)).toEqual(Array.from({ length: 10 }, () => "accepted"));
  } finally {
    other.release();
  }
  expect(await balanceOf(db, key.customer_id)).toBe(mils(1_000_000n - 10n * CHARGE));
});

test("who has gone before their statement begins is charged nothing; who goes during it is in", async () => {
  const key = await newCustomer(db);
  const sql = watched(db);
  const acceptor = createAcceptor(sql);
  expect(await told(acceptor.accept(newRollout(key), AbortSignal.abort()))).toBe("client_closed_request");
  expect(sql.batches).toEqual([]);

  const callers = Array.from({ length: 8 }, () => new AbortController());
  let results: Promise<string[]> | undefined;
  await whileHeld(key, async () => {
    results = Promise.all(callers.map(({ signal }) => told(acceptor.accept(newRollout(key), signal))));
    await untilWaitingForLocks(db, 1);
    for (const n of [0, 1, 4, 7]) callers[n]?.abort();
  });
  expect(await results).toEqual([
    "accepted",
    "client_closed_request",
    "accepted",
    "accepted",
    "client_closed_request",
    "accepted",
    "accepted",
    "client_closed_request",
  ]);
  expect(sql.batches.map((ids) => ids.length)).toEqual([1, 4]);
  expect(await balanceOf(db, key.customer_id)).toBe(mils(1_000_000n - 5n * CHARGE));
});

test("a copy whose idempotency key a gone caller had asked under first is served", async () => {
  const key = await newCustomer(db);
  const acceptor = createAcceptor(db);
  const payload = { idempotency_key: "handed on", fingerprint: fingerprint("handed on") };
  const leave = new AbortController();
  const first = told(acceptor.accept(newRollout(key)));
  const gone = told(acceptor.accept(newRollout(key, payload), leave.signal));
  const copy = told(acceptor.accept(newRollout(key, payload)));
  leave.abort();
  expect(await Promise.all([first, gone, copy])).toEqual(["accepted", "client_closed_request", "accepted"]);
});

test("where one spoils a statement, those whose part of it is through are answered while the others still wait", async () => {
  const key = await newCustomer(db);
  const firstAnswered = Promise.withResolvers<void>();
  let statements = 0;
  const acceptor = createAcceptor({
    query: async (text, params) => {
      // The first alone, all eight, their first half; the second half waits for the first half's callers.
      if (text.includes("ledger_chain") && ++statements === 4) await firstAnswered.promise;
      return db.query(text, params);
    },
  });
  const asked = Array.from({ length: 9 }, (_, n) =>
    newRollout(key, n === 8 ? { idempotency_key: "x".repeat(256) } : {}),
  );
  const results = asked.map((r) => acceptor.accept(r));
  const all = Promise.allSettled(results);
  await Promise.all(results.slice(0, 5));
  firstAnswered.resolve();
  expect((await all).flatMap(({ status }, n) => (status === "rejected" ? [n] : []))).toEqual([8]);
});
