import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { LOCAL_CUSTOMER } from "#contract/ids.ts";
import { KEYS_PER_CUSTOMER_MAX } from "#contract/limits.ts";
import { mils } from "#contract/mils.ts";
import { findCustomer } from "#keys/customers.ts";
import { authenticate, createKey, type CreatedKey, localKey, revokeKey } from "#keys/keys.ts";
import { type Asking, keysOfCustomer, mintOwnKey, revokeOwnKey, signUp } from "#keys/self-service.ts";
import { systemClock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import { createTestDatabase, type TestDatabase, untilWaitingForLocks } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
});
afterAll(() => database.drop());

let customers = 0;
const newCustomer = (terms: { rate_per_s?: number; burst?: number; expires_at?: Date } = {}): Promise<CreatedKey> =>
  createKey(db, { customer: `cus_self_${(customers += 1)}`, ...terms }, randomBytes);
const mint = (asking: Asking, wanted: { label?: string; expires_at?: Date } = {}) =>
  mintOwnKey(db, asking, wanted, randomBytes);
const revoke = (asking: Asking, keyId: string, force = false) => revokeOwnKey(db, asking, keyId, { force });
const works = (apiKey: string): Promise<boolean> =>
  authenticate(db, apiKey, systemClock).then(
    () => true,
    () => false,
  );

describe("minting", () => {
  test("rotation needs nobody: mint with the old key, use the new one, delete the old one", async () => {
    const old = await newCustomer({ rate_per_s: 7, burst: 9 });
    const next = await mint(old, { label: "2027" });
    expect(await authenticate(db, next.api_key, systemClock)).toMatchObject({
      customer_id: old.customer_id,
      rate_per_s: 7,
      burst: 9,
    });
    await revoke({ ...old, key_id: next.key_id }, old.key_id);
    expect(await works(old.api_key)).toBe(false);
    expect(await works(next.api_key)).toBe(true);
    const keys = await keysOfCustomer(db, old.customer_id);
    expect(keys.map(({ key_id }) => key_id)).toEqual([next.key_id, old.key_id]); // what can be used comes first
    expect(keys.map(({ label }) => label)).toEqual(["2027", null]);
  });

  test("a key that ends makes none that outlives it", async () => {
    const end = new Date(Date.now() + 3_600_000);
    const asking = await newCustomer({ expires_at: end });
    expect((await mint(asking)).key.expires_at).toEqual(end);
    const sooner = new Date(end.getTime() - 60_000);
    expect((await mint(asking, { expires_at: sooner })).key.expires_at).toEqual(sooner);
    await expect(mint(asking, { expires_at: new Date(end.getTime() + 1) })).rejects.toMatchObject({
      code: "invalid_input",
    });
  });

  test(`no more than ${KEYS_PER_CUSTOMER_MAX} keys that can be used, also when asked for at once`, async () => {
    const asking = await newCustomer();
    const results = await Promise.allSettled(Array.from({ length: KEYS_PER_CUSTOMER_MAX + 5 }, () => mint(asking)));
    const refused = results.flatMap((result) => (result.status === "rejected" ? [result.reason] : []));
    expect(refused).toHaveLength(6);
    for (const reason of refused) expect(reason).toMatchObject({ code: "too_many_keys", status: 409 });

    // What cannot be used does not count.
    const [newest] = await keysOfCustomer(db, asking.customer_id);
    await revoke(asking, String(newest?.key_id));
    await mint(asking);
    await expect(mint(asking)).rejects.toMatchObject({ code: "too_many_keys" });
  });

  test("a key that was revoked while its request was under way mints nothing and ends nothing", async () => {
    const asking = await newCustomer();
    const sister = await mint(asking);
    await revokeKey(db, asking.key_id);
    await expect(mint(asking)).rejects.toMatchObject({ code: "revoked_key" });
    await expect(revoke(asking, sister.key_id, true)).rejects.toMatchObject({ code: "revoked_key" });
    expect(await works(sister.api_key)).toBe(true);
  });

  test("the built-in customer makes none: with AUTH=on its $1,000 are nobody's", async () => {
    const local = await localKey(db, randomBytes);
    await expect(mint(local)).rejects.toMatchObject({ code: "forbidden", status: 403 });
    const operators = await createKey(db, { customer: LOCAL_CUSTOMER }, randomBytes);
    await expect(mint(operators)).rejects.toMatchObject({ code: "forbidden" });
  });

  test.each(["x".repeat(101), "new\nline", "nul\u0000", "\u001b[31m"])("refuses the label %j", async (label) => {
    const asking = await newCustomer();
    await expect(mint(asking, { label })).rejects.toMatchObject({ code: "invalid_input" });
    await expect(createKey(db, { customer: asking.customer_id, label }, randomBytes)).rejects.toMatchObject({
      code: "invalid_input",
    });
  });
});

describe("revoking", () => {
  test("the last key only when forced", async () => {
    const only = await newCustomer();
    await expect(revoke(only, only.key_id)).rejects.toMatchObject({ code: "last_key", status: 409 });
    expect(await works(only.api_key)).toBe(true);
    expect((await revoke(only, only.key_id, true)).revoked_at).toBeInstanceOf(Date);
    expect(await works(only.api_key)).toBe(false);
  });

  test("keys that cannot be used do not make a last one spare", async () => {
    const asking = await newCustomer();
    const gone = await mint(asking);
    await revoke(asking, gone.key_id);
    const past = await mint(asking);
    await db.query("UPDATE api_keys SET expires_at = now() - interval '1 second' WHERE id = $1", [past.key_id]);
    await expect(revoke(asking, asking.key_id)).rejects.toMatchObject({ code: "last_key" });
    // Ending what cannot be used anyway takes nothing away.
    expect((await revoke(asking, past.key_id)).revoked_at).toBeInstanceOf(Date);
    const { revoked_at } = await revoke(asking, gone.key_id);
    expect((await revoke(asking, gone.key_id)).revoked_at).toEqual(revoked_at);
  });

  test("another customer's key is as unknown as one that never was", async () => {
    const [mine, theirs] = [await newCustomer(), await newCustomer()];
    const refusals = await Promise.all(
      [theirs.key_id, "key_0000000000000000", "", "' OR true --", theirs.prefix].map((id) =>
        revoke(mine, id, true).catch((error: unknown) => error),
      ),
    );
    for (const refusal of refusals) {
      expect(refusal).toMatchObject({ code: "not_found", message: "you have no key of that id" });
    }
    expect(await works(theirs.api_key)).toBe(true);
  });

  test("of two deletions of the last two keys at the same time, one passes", async () => {
    for (let round = 0; round < 10; round++) {
      const one = await newCustomer();
      const two = await mint(one);
      const other = { ...one, key_id: two.key_id };
      const results = await Promise.allSettled([revoke(one, two.key_id), revoke(other, one.key_id)]);
      expect(results.map(({ status }) => status).sort()).toEqual(["fulfilled", "rejected"]);
      expect([await works(one.api_key), await works(two.api_key)].filter(Boolean)).toHaveLength(1);

      const three = await newCustomer();
      const four = await mint(three);
      const own = await Promise.allSettled([
        revoke(three, three.key_id),
        revoke({ ...three, key_id: four.key_id }, four.key_id),
      ]);
      expect(own.map(({ status }) => status).sort()).toEqual(["fulfilled", "rejected"]);
    }
  });

  test("waits for a debit that holds the key, so none commits for it afterwards", async () => {
    const asking = await newCustomer();
    const spare = await mint(asking);
    const debit = Promise.withResolvers<void>();
    const holds = Promise.withResolvers<void>();
    const held = db.transaction(async (tx) => {
      await tx.query("SELECT 1 FROM api_keys WHERE id = $1 FOR SHARE", [spare.key_id]);
      holds.resolve();
      await debit.promise;
    });
    await holds.promise;
    let revoked = false;
    const revoking = revoke(asking, spare.key_id).then(() => (revoked = true));
    await untilWaitingForLocks(db, 1);
    expect(revoked).toBe(false);
    debit.resolve();
    await held;
    await revoking;
    expect(await works(spare.api_key)).toBe(false);
  });
});

const close = (customerId: string): Promise<unknown> =>
  db.query("UPDATE customers SET closed_at = now() WHERE id = $1", [customerId]);

describe("a closed customer", () => {
  test("has no key that works, and gets none", async () => {
    const key = await newCustomer();
    const sister = await mint(key);
    await close(key.customer_id);
    await expect(authenticate(db, key.api_key, systemClock)).rejects.toMatchObject({ code: "revoked_key" });
    expect(await works(sister.api_key)).toBe(false);
    await expect(mint(key)).rejects.toMatchObject({ code: "forbidden", message: /is closed/ });
    await expect(createKey(db, { customer: key.customer_id }, randomBytes)).rejects.toMatchObject({
      code: "forbidden",
      message: `customer ${key.customer_id} is closed: it cannot have keys`,
    });
  });

  test("closing and minting come one after the other", async () => {
    const key = await newCustomer();
    const closing = Promise.withResolvers<void>();
    const holds = Promise.withResolvers<void>();
    const closed = db.transaction(async (tx) => {
      await tx.query("UPDATE customers SET closed_at = now() WHERE id = $1", [key.customer_id]);
      holds.resolve();
      await closing.promise;
    });
    await holds.promise;
    const minting = createKey(db, { customer: key.customer_id }, randomBytes).catch((error: unknown) => error);
    await untilWaitingForLocks(db, 1);
    closing.resolve();
    await closed;
    expect(await minting).toMatchObject({ code: "forbidden" });
    expect(await keysOfCustomer(db, key.customer_id)).toHaveLength(1);
  });
});

describe("signing up", () => {
  test("makes a customer with a key and an empty balance", async () => {
    const signedUp = await signUp(db, { email: "New@Example.com", label: "first" }, randomBytes);
    expect(await authenticate(db, signedUp.api_key, systemClock)).toMatchObject({
      customer_id: signedUp.customer_id,
      balance_mils: 0n,
    });
  });

  test("is a customer of its own each time, whatever the address, and however many ask at once", async () => {
    const owner = await createKey(db, { customer: "owner@example.com" }, randomBytes);
    const spellings = ["owner@example.com", "OWNER@Example.COM", ...Array<string>(6).fill("rush@example.com")];
    const signedUp = await Promise.all(spellings.map((email) => signUp(db, { email }, randomBytes)));
    const customers = new Set([owner, ...signedUp].map(({ customer_id }) => customer_id));
    expect(customers.size).toBe(1 + spellings.length);
    expect(await keysOfCustomer(db, owner.customer_id)).toHaveLength(1);
  });

  test("takes an address from nobody: an operator who names it means somebody else", async () => {
    const attacker = await signUp(db, { email: "Victim@example.com" }, randomBytes);
    expect(await findCustomer(db, "victim@example.com")).toBe(null);
    const victim = await createKey(db, { customer: "victim@example.com", initial_credits: mils(100) }, randomBytes);
    expect(victim).toMatchObject({ created_customer: true, balance_mils: 100n });
    expect(victim.customer_id).not.toBe(attacker.customer_id);
    expect(await authenticate(db, attacker.api_key, systemClock)).toMatchObject({ balance_mils: 0n });
    const [row] = await db.query("SELECT email, signup_email FROM customers WHERE id = $1", [attacker.customer_id]);
    expect(row).toEqual({ email: null, signup_email: "victim@example.com" });
  });
});

describe("keys that were revoked or have ended", () => {
  const USED_UP = 3_000;
  let asking: CreatedKey;
  beforeAll(async () => {
    asking = await newCustomer();
    await db.query(
      `INSERT INTO api_keys (id, customer_id, key_hash, prefix, created_at, revoked_at, expires_at)
       SELECT 'key_old' || n, $1, sha256(n::text::bytea), 'dre_', now() - n * interval '1 minute',
              CASE WHEN n % 2 = 0 THEN now() END, now() - interval '1 second' FROM generate_series(1, ${USED_UP}) n`,
      [asking.customer_id],
    );
    await db.query("ANALYZE api_keys");
  });

  test("are shown as far as they are recent, after all that can be used", async () => {
    const another = await mint(asking);
    const keys = await keysOfCustomer(db, asking.customer_id);
    expect(keys.slice(0, 2).map(({ key_id }) => key_id)).toEqual([another.key_id, asking.key_id]);
    expect(keys.slice(2).map(({ key_id }) => key_id)).toEqual(
      Array.from({ length: keys.length - 2 }, (_unused, n) => `key_old${n + 1}`),
    );
    expect(keys.length).toBeLessThan(100);
  });

  test("are not read by what asks for others, however many there are", async () => {
    let read = Number.NaN;
    const counting = {
      async query<Row>(text: string, params: readonly unknown[] = []): Promise<Row[]> {
        const [row] = await db.query<{ "QUERY PLAN": { Plan: Plan }[] }>(
          `EXPLAIN (ANALYZE, FORMAT JSON) ${text}`,
          params,
        );
        read = rowsRead(row?.["QUERY PLAN"][0]?.Plan);
        return [];
      },
    };
    await keysOfCustomer(counting, asking.customer_id);
    expect(read).toBeLessThan(300);
  });
});

interface Plan {
  readonly "Actual Rows": number;
  readonly "Rows Removed by Filter"?: number;
  readonly "Relation Name"?: string;
  readonly Plans?: readonly Plan[];
}

/** Rows that were taken from tables, those that a filter threw away included. */
function rowsRead(plan: Plan | undefined): number {
  if (plan === undefined) return 0;
  const own = plan["Relation Name"] === "api_keys" ? plan["Actual Rows"] + (plan["Rows Removed by Filter"] ?? 0) : 0;
  return own + (plan.Plans ?? []).reduce((sum, inner) => sum + rowsRead(inner), 0);
}
