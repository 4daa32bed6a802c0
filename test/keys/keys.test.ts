import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, expect, test } from "vitest";

import type { ApiError } from "#contract/errors.ts";
import { LOCAL_CUSTOMER, LOCAL_KEY } from "#contract/ids.ts";
import { mils } from "#contract/mils.ts";
import { authenticate, createKey, limitKey, listKeys, localKey, revokeKey } from "#keys/keys.ts";
import { mintToken } from "#keys/token.ts";
import { verifyLedger } from "#ledger/verify.ts";
import { systemClock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
});
afterAll(() => database.drop());

const refusalOf = (bearer: string | null, now = Date.now()): Promise<ApiError | undefined> =>
  authenticate(db, bearer, { now: () => now }).then(
    () => undefined,
    (error: ApiError) => error,
  );

test("creates a customer with its first key, which authenticates", async () => {
  const key = await createKey(
    db,
    { customer: "Ada@Example.com", initial_credits: mils(250_000), label: "lab" },
    randomBytes,
  );

  expect(key).toMatchObject({ created_customer: true, balance_mils: 250_000n });
  expect(await authenticate(db, key.api_key, systemClock)).toEqual({
    key_id: key.key_id,
    customer_id: key.customer_id,
    balance_mils: 250_000n,
    rate_per_s: null,
    burst: null,
    price_mils_per_frame: 5,
  });
});

test("several keys share a customer's balance, and credits add up", async () => {
  const first = await createKey(db, { customer: "bob@example.com", initial_credits: mils(100) }, randomBytes);
  const second = await createKey(db, { customer: "BOB@example.com", initial_credits: mils(20) }, randomBytes);
  const third = await createKey(db, { customer: first.customer_id }, randomBytes);

  expect(second).toMatchObject({ customer_id: first.customer_id, created_customer: false, balance_mils: 120n });
  expect(third).toMatchObject({ customer_id: first.customer_id, created_customer: false, balance_mils: 120n });
  expect((await authenticate(db, first.api_key, systemClock)).balance_mils).toBe(120n);
  expect(await verifyLedger(db)).toEqual([]);
});

test("keys created at the same time for one new customer end up with one customer", async () => {
  const keys = await Promise.all(
    Array.from({ length: 8 }, () =>
      createKey(db, { customer: "eve@example.com", initial_credits: mils(1) }, randomBytes),
    ),
  );
  expect(new Set(keys.map((key) => key.customer_id)).size).toBe(1);
  expect(keys.filter((key) => key.created_customer)).toHaveLength(1);
  expect((await listKeys(db, "Eve@example.com")).map((key) => key.balance_mils)).toEqual(Array(8).fill(8n));
});

test("takes a customer id that an operator chose, and refuses what is neither an id nor an address", async () => {
  const key = await createKey(db, { customer: "cus_acme" }, randomBytes);
  expect(key).toMatchObject({ customer_id: "cus_acme", balance_mils: 0n });

  for (const customer of ["", "acme", "cus_", "cus_ACME", "a b@example.com", "a@b@c"]) {
    await expect(createKey(db, { customer }, randomBytes)).rejects.toMatchObject({ code: "invalid_request" });
  }
});

test("the database holds nothing that authenticates", async () => {
  const { api_key } = await createKey(db, { customer: "carol@example.com" }, randomBytes);
  const [dump] = await db.query<{ text: string }>("SELECT string_agg(api_keys::text, ' ') AS text FROM api_keys");
  expect(dump?.text).not.toContain(api_key.slice(12));
});

test("a malformed key is told apart from an unknown one without asking the database", async () => {
  const { api_key } = await createKey(db, { customer: "dan@example.com" }, randomBytes);
  const unreachable = { query: () => Promise.reject(new Error("asked the database")) };

  for (const bearer of [
    null,
    "",
    "sk_live_x",
    api_key.slice(0, -3),
    api_key.replace(/.$/, (c) => (c === "a" ? "b" : "a")),
  ]) {
    await expect(authenticate(unreachable, bearer, systemClock)).rejects.toMatchObject({
      status: 401,
      code: bearer === null ? "missing_key" : "malformed_key",
    });
  }
  expect(await refusalOf(mintToken(randomBytes).token)).toMatchObject({ status: 401, code: "unknown_key" });
});

test("a revoked key stops working at once, its sister does not", async () => {
  const key = await createKey(db, { customer: "frank@example.com" }, randomBytes);
  const sister = await createKey(db, { customer: "frank@example.com" }, randomBytes);

  const revoked = await revokeKey(db, key.prefix);
  expect(revoked).toMatchObject({ key_id: key.key_id, customer_id: key.customer_id });
  expect(await revokeKey(db, key.key_id)).toEqual(revoked); // again: nothing changes

  expect(await refusalOf(key.api_key)).toMatchObject({ status: 401, code: "revoked_key" });
  expect(await refusalOf(sister.api_key)).toBeUndefined();
  await expect(revokeKey(db, "dre_nothere")).rejects.toMatchObject({ code: "not_found" });
});

test("a prefix that two keys share revokes neither", async () => {
  let draws = 0;
  // All zeros but for the last byte.
  const nearlySame = (size: number): Uint8Array => {
    draws += 1;
    return Uint8Array.from({ length: size }, (_, i) => (i === size - 1 ? draws : 0));
  };
  const one = await createKey(db, { customer: "cus_twin" }, nearlySame);
  const two = await createKey(db, { customer: "cus_twin" }, nearlySame);
  expect(one.prefix).toBe(two.prefix);

  await expect(revokeKey(db, one.prefix)).rejects.toMatchObject({ code: "invalid_request" });
  expect(await refusalOf(one.api_key)).toBeUndefined();
});

test("a key expires at its time", async () => {
  const expiresAt = new Date("2030-01-01T00:00:00Z");
  const { api_key } = await createKey(db, { customer: "grace@example.com", expires_at: expiresAt }, randomBytes);
  expect(await refusalOf(api_key, expiresAt.getTime() - 1)).toBeUndefined();
  expect(await refusalOf(api_key, expiresAt.getTime())).toMatchObject({ status: 401, code: "expired_key" });
});

test("a key's own limit is set, and set back to the default", async () => {
  const key = await createKey(db, { customer: "heidi@example.com", rate_per_s: 5, burst: 6 }, randomBytes);
  expect(await authenticate(db, key.api_key, systemClock)).toMatchObject({ rate_per_s: 5, burst: 6 });
  await limitKey(db, key.key_id, { rate_per_s: null, burst: 10 });
  expect(await authenticate(db, key.api_key, systemClock)).toMatchObject({ rate_per_s: null, burst: 10 });
  await expect(limitKey(db, "key_none", { rate_per_s: 1, burst: 1 })).rejects.toMatchObject({ code: "not_found" });
});

test("the local key exists once, with $1,000, however many ask for it first", async () => {
  const identities = await Promise.all(Array.from({ length: 6 }, () => localKey(db, randomBytes)));
  for (const identity of identities) {
    expect(identity).toMatchObject({ key_id: LOCAL_KEY, customer_id: LOCAL_CUSTOMER, balance_mils: 10_000_000n });
  }
  expect(await listKeys(db, LOCAL_CUSTOMER)).toHaveLength(1);
});

test("the local key comes to be also where an operator made the local customer before", async () => {
  const fresh = await createTestDatabase();
  const operators = await createKey(
    fresh.db,
    { customer: LOCAL_CUSTOMER, initial_credits: mils(5), label: "by hand" },
    randomBytes,
  );
  const identities = await Promise.all(Array.from({ length: 4 }, () => localKey(fresh.db, randomBytes)));
  for (const identity of identities) expect(identity).toMatchObject({ key_id: LOCAL_KEY, balance_mils: 10_000_005n });
  expect((await listKeys(fresh.db, LOCAL_CUSTOMER)).map(({ key_id }) => key_id).sort()).toEqual(
    [operators.key_id, LOCAL_KEY].sort(),
  );
  expect(await verifyLedger(fresh.db)).toEqual([]);
  await fresh.drop();
});

test("an operator's list has every key that was not revoked, and of the others the last hundred", async () => {
  const key = await createKey(db, { customer: "rotates@example.com" }, randomBytes);
  await db.query(
    `INSERT INTO api_keys (id, customer_id, key_hash, prefix, created_at, revoked_at)
     SELECT 'key_gone' || n, $1, sha256(n::text::bytea), 'dre_', now() - n * interval '1 hour', now() - n * interval '1 minute'
       FROM generate_series(1, 150) n`,
    [key.customer_id],
  );
  const gone = Array.from({ length: 100 }, (_unused, n) => `key_gone${100 - n}`); // oldest first
  expect((await listKeys(db, "Rotates@Example.com")).map(({ key_id }) => key_id)).toEqual([...gone, key.key_id]);
  const all = await listKeys(db);
  expect(all.filter(({ revoked_at }) => revoked_at !== null)).toHaveLength(100);
  expect(all.map(({ key_id }) => key_id)).toContain(key.key_id);
});

test("a customer's own price holds from its day on, before the list's", async () => {
  const { customer_id, api_key } = await createKey(db, { customer: "cus_priced" }, randomBytes);
  const set = (milsPerFrame: number, from: string): Promise<unknown> =>
    db.query("INSERT INTO prices (customer_id, mils_per_frame, effective_from, note) VALUES ($1, $2, $3, 'test')", [
      customer_id,
      milsPerFrame,
      from,
    ]);
  const price = async (): Promise<number> => (await authenticate(db, api_key, systemClock)).price_mils_per_frame;

  await set(9, "2999-01-01");
  expect(await price()).toBe(5);
  await set(3, "2020-01-01");
  expect(await price()).toBe(3);
  await set(4, "2021-01-01");
  expect(await price()).toBe(4);
});
