import { type Arbitrary, array, assert, asyncProperty, constant, integer, oneof, record } from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";

import { priceAt, type PriceRow } from "#billing/notice.ts";
import { type NewPrice, noticeFor, priceFor, pricesOf, setPrice } from "#billing/prices.ts";
import { mils } from "#contract/mils.ts";
import { balanceOf } from "#ledger/ledger.ts";
import { systemClock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import { settle } from "#rollouts/settle.ts";
import { accept, assertBooksBalance, dispatch, failed, newCustomer } from "#test/support/ledger.ts";
import { createTestDatabase, type TestDatabase, untilWaitingForLocks } from "#test/support/postgres.ts";

const DAY_MS = 86_400_000;

let database: TestDatabase;
let db: Database;
// One for each test, because prices stay: rollouts are verified against them.
beforeEach(async () => {
  database = await createTestDatabase({ poolMax: 20 });
  ({ db } = database);
});
afterEach(async () => {
  try {
    await assertBooksBalance(db);
  } finally {
    await database.drop();
  }
});

/** Back to the first list price; only the owner of the tables can, by taking the guards away. */
async function forgetPrices(sql: Database): Promise<void> {
  await sql.transaction(async (tx) => {
    await tx.query("ALTER TABLE prices DISABLE TRIGGER USER");
    await tx.query("DELETE FROM prices WHERE effective_from > '-infinity'");
    await tx.query("ALTER TABLE prices ENABLE TRIGGER USER");
  });
}

const set = (change: Partial<NewPrice>, now = Date.now()): Promise<{ effective_from: Date }> =>
  setPrice(
    db,
    {
      customer_id: null,
      mils_per_frame: 5,
      effective_from: null,
      note: "a test",
      operator: "tester",
      override_reason: null,
      ...change,
    },
    { now: () => now },
  );

const inDays = (days: number, now = Date.now()): Date => new Date(now + days * DAY_MS);

test("whose price it is costs a look into an index, however many customers have prices of their own", async () => {
  const { customer_id } = await newCustomer(db);
  await db.query("INSERT INTO customers (id) SELECT 'cus_many_' || n FROM generate_series(1, 5000) AS n");
  await db.query(
    `INSERT INTO accounts (customer_id, account)
     SELECT id, account FROM customers, unnest(ARRAY['balance', 'debt']) AS account WHERE id LIKE 'cus_many_%'`,
  );
  await db.query(
    `INSERT INTO prices (customer_id, mils_per_frame, effective_from, note)
     SELECT 'cus_many_' || n, 4, now(), 'a test' FROM generate_series(1, 5000) AS n`,
  );
  await db.query("ANALYZE prices");
  await db.transaction(async (tx) => {
    const readWhole = async (): Promise<bigint | undefined> =>
      (await tx.query<{ times: bigint }>("SELECT pg_stat_get_xact_numscans('prices'::regclass) AS times"))[0]?.times;
    const before = await readWhole();
    expect(await priceFor(tx, customer_id)).toBe(5);
    expect(await priceFor(tx, "cus_many_77")).toBe(4);
    expect(await priceFor(tx, null)).toBe(5);
    expect(await readWhole()).toBe(before);
  });
});

describe("setting a price", () => {
  test("goes by the database's clock where no other is given", async () => {
    const { customer_id } = await newCustomer(db);
    const price = { customer_id, mils_per_frame: 3, note: "a test", operator: "tester", override_reason: null };
    const { effective_from } = await setPrice(db, { ...price, effective_from: null });
    const [row] = await db.query<{ late_ms: number }>(
      "SELECT (extract(epoch FROM now() - $1::timestamptz) * 1000)::float8 AS late_ms",
      [effective_from],
    );
    expect(row?.late_ms).toBeGreaterThanOrEqual(0);
    expect(row?.late_ms).toBeLessThan(10_000);
    const past = setPrice(db, { ...price, effective_from: new Date(effective_from.getTime() - 1) });
    await expect(past).rejects.toThrow("cannot take effect in the past");
  });

  test("a lowering takes effect at once, for whom it is meant", async () => {
    const [key, other] = [await newCustomer(db), await newCustomer(db)];
    await set({ customer_id: key.customer_id, mils_per_frame: 3 });
    expect(await priceFor(db, key.customer_id)).toBe(3);
    expect(await priceFor(db, other.customer_id)).toBe(5);
    expect(await priceFor(db, null)).toBe(5);
  });

  test("a rise without 30 days' notice is refused with the earliest date", async () => {
    const now = Date.now();
    const refusal = set({ mils_per_frame: 6, effective_from: inDays(29, now) }, now);
    await expect(refusal).rejects.toThrow(/would pay 6 mils a frame instead of 5 .*30 days' notice/);
    await expect(refusal).rejects.toThrow(`earliest date for this change is ${inDays(30, now).toISOString()}`);
    await expect(refusal).rejects.toMatchObject({ code: "invalid_request" });
    expect(await pricesOf(db, null)).toHaveLength(1);
  });

  test("a rise with 30 days' notice is scheduled, and customers can read it", async () => {
    const key = await newCustomer(db);
    const now = Date.now();
    await set({ mils_per_frame: 6, effective_from: inDays(30, now) }, now);
    expect(await noticeFor(db, key.customer_id, systemClock)).toEqual({
      mils_per_frame: 5,
      list_mils_per_frame: 5,
      changes: [{ mils_per_frame: 6, effective_from: inDays(30, now) }],
    });
  });

  test("an override lets a rise through and is kept, in the row and among the operators' actions", async () => {
    await set({ mils_per_frame: 6, override_reason: "agreed by letter", note: "costs" });
    expect(await priceFor(db, null)).toBe(6);
    expect((await pricesOf(db, null)).at(-1)).toMatchObject({
      state: "in force",
      override_reason: "agreed by letter",
      note: "costs",
      operator: "tester",
    });
    const [action] = await db.query("SELECT * FROM operator_actions ORDER BY id DESC LIMIT 1");
    expect(action).toMatchObject({
      action: "prices set",
      operator: "tester",
      reason: "costs",
      details: { mils_per_frame: 6, override_reason: "agreed by letter" },
    });
  });

  test("an override that was not needed is not kept", async () => {
    await set({ mils_per_frame: 4, override_reason: "to be sure" });
    expect((await pricesOf(db, null)).at(-1)).toMatchObject({ override_reason: null });
  });

  test("the end of a committed price needs the notice, too", async () => {
    const { customer_id } = await newCustomer(db);
    await set({ customer_id, mils_per_frame: 3 });
    await expect(set({ customer_id, mils_per_frame: null, effective_from: inDays(10) })).rejects.toThrow(
      `${customer_id} would pay 5 mils a frame instead of 3`,
    );
    await set({ customer_id, mils_per_frame: null, effective_from: inDays(31) });
    const [row] = await db.query("SELECT price_in_force($1, now() + interval '32 days') AS price", [customer_id]);
    expect(row).toEqual({ price: 5 });
  });

  test.for<[string, Partial<NewPrice>, string]>([
    ["a date in the past", { mils_per_frame: 1, effective_from: new Date(0) }, "cannot take effect in the past"],
    ["an end of a price that is none", { customer_id: "cus_none", mils_per_frame: null }, "there is nothing to end"],
    ["an end of the list's", { mils_per_frame: null }, "the list price cannot end"],
    ["less than nothing", { mils_per_frame: -1 }, "expected a whole number of mils"],
    ["part of a mil", { mils_per_frame: 0.5 }, "expected a whole number of mils"],
    ["no reason", { mils_per_frame: 1, note: " " }, "expected a reason"],
    ["an override without a reason", { mils_per_frame: 9, override_reason: "" }, "expected a reason"],
  ])("%s is refused", async ([, change, message]) => {
    await expect(set(change)).rejects.toThrow(message);
    expect(await pricesOf(db, null)).toHaveLength(1);
  });

  test("nobody changes or removes a row afterwards, not even the owner", async () => {
    for (const statement of ["UPDATE prices SET mils_per_frame = 1", "DELETE FROM prices", "TRUNCATE prices"]) {
      await expect(db.query(statement)).rejects.toThrow("prices is append-only");
    }
  });

  test("two at once are judged one after the other", async () => {
    const { customer_id } = await newCustomer(db);
    const now = Date.now();
    // Alone each is fine: a committed price of 5 in 10 days, and a list price of 3 in 5. Together the first is a rise.
    const results = await db.transaction(async (tx) => {
      await tx.query("LOCK TABLE prices IN SHARE ROW EXCLUSIVE MODE");
      const both = Promise.allSettled([
        set({ customer_id, mils_per_frame: 5, effective_from: inDays(10, now) }, now),
        set({ mils_per_frame: 3, effective_from: inDays(5, now) }, now),
      ]);
      await untilWaitingForLocks(db, 2);
      return { both };
    });
    expect((await results.both).map(({ status }) => status).toSorted()).toEqual(["fulfilled", "rejected"]);
  });

  test("reading prices does not wait for somebody who sets one", async () => {
    await db.transaction(async (tx) => {
      await tx.query("LOCK TABLE prices IN SHARE ROW EXCLUSIVE MODE");
      expect(await priceFor(db, null)).toBe(5);
    });
  });
});

describe("what a rollout costs", () => {
  test("is the price in force when it was accepted: a rise in between is refunded at the old one", async () => {
    const key = await newCustomer(db, mils(10_000));
    const rollout = await accept(db, key);
    await set({ mils_per_frame: 9, override_reason: "a test" });
    expect(await accept(db, key)).toMatchObject({ charge_mils: 441n });
    await dispatch(db, rollout.id);
    const { rollout: ended } = await settle(db, rollout.id, 1, failed(9));
    expect(ended).toMatchObject({ charge_mils: 245n, refunded_mils: 200n, price_mils_per_frame: 5 });
    expect(await balanceOf(db, key.customer_id)).toBe(10_000n - 45n - 441n);
  });

  test("is the price in force when it was accepted: a lowering in between takes nothing from the refund", async () => {
    const key = await newCustomer(db, mils(10_000));
    const rollout = await accept(db, key);
    await set({ mils_per_frame: 0 });
    await settle(db, rollout.id, null, failed());
    expect(await balanceOf(db, key.customer_id)).toBe(10_000n);
  });

  test("with a price of nothing is nothing, and settles like any other", async () => {
    const key = await newCustomer(db, mils(1));
    await set({ customer_id: key.customer_id, mils_per_frame: 0 });
    const rollout = await accept(db, key);
    const { settled } = await settle(db, rollout.id, null, failed());
    expect([settled, await balanceOf(db, key.customer_id)]).toEqual([true, 1n]);
  });
});

const CUSTOMERS = 2;

interface Step {
  readonly who: number;
  readonly mils_per_frame: number | null;
  readonly inDays: number;
  readonly waitDays: number;
}

/** Who: 0 is the list, others are customers. Small numbers, so that everything meets everything. */
const step: Arbitrary<Step> = record({
  who: integer({ min: 0, max: CUSTOMERS }),
  mils_per_frame: oneof({ weight: 4, arbitrary: integer({ min: 2, max: 7 }) }, constant(null)),
  inDays: integer({ min: 0, max: 45 }),
  waitDays: oneof(constant(0), integer({ min: 0, max: 20 })),
});

test("whatever is scheduled without an override, nobody's price ever rises with less than 30 days' notice", async () => {
  const customers = await Promise.all(Array.from({ length: CUSTOMERS }, () => newCustomer(db)));
  const names = [null, ...customers.map(({ customer_id }) => customer_id as string)];
  let rises = 0;
  let refusals = 0;

  await assert(
    asyncProperty(array(step, { minLength: 3, maxLength: 12 }), async (steps) => {
      await forgetPrices(db);
      let now = Date.UTC(2027, 0, 1);
      for (const { who, mils_per_frame, inDays: days, waitDays } of steps) {
        now += waitDays * DAY_MS;
        if (who === 0 && mils_per_frame === null) continue;
        const change = { customer_id: names[who] ?? null, mils_per_frame, effective_from: inDays(days, now) };
        const answer = await set(change, now).then(() => "done", String);
        expect(answer).toMatch(/^done$|nothing to end$|30 days' notice|nothing to end/);
        if (answer.includes("notice")) refusals += 1;
      }
      const found = await risesOf(names);
      for (const rise of found) expect(rise.told_days, JSON.stringify(rise)).toBeGreaterThanOrEqual(30);
      rises += found.length;
      await asToldAndAsThePolicySays(names);
    }),
    { numRuns: 150 },
  );
  // The schedules were wild enough to mean something.
  expect(rises).toBeGreaterThan(50);
  expect(refusals).toBeGreaterThan(100);
}, 120_000);

/**
 * Every moment at which somebody's price rises, by the database's own idea of prices, and how many days before the last
 * row that took effect then was written.
 */
async function risesOf(names: readonly (string | null)[]): Promise<{ told_days: number }[]> {
  return db.query(
    `SELECT who, at, before, after, told_days
       FROM unnest($1::text[]) AS who,
            LATERAL (SELECT effective_from AS at, max(extract(epoch FROM effective_from - recorded_at) / 86400)::float8 AS told_days
                       FROM prices WHERE effective_from > '-infinity' AND (customer_id IS NULL OR customer_id = who)
                      GROUP BY effective_from) dates,
            LATERAL (SELECT price_in_force(who, at - interval '1 ms') AS before, price_in_force(who, at) AS after) prices
      WHERE after > before`,
    [names],
  );
}

/** At every date: the SQL function and the policy agree, and nobody pays more than was written down 30 days before. */
async function asToldAndAsThePolicySays(names: readonly (string | null)[]): Promise<void> {
  const rows = await db.query<PriceRow>(
    `SELECT customer_id, mils_per_frame, (extract(epoch FROM effective_from) * 1000)::float8 AS effective_ms,
            (extract(epoch FROM recorded_at) * 1000)::float8 AS recorded_ms, false AS overridden FROM prices ORDER BY id`,
  );
  const asked = names.flatMap((who) =>
    rows.flatMap(({ effective_ms }) => (effective_ms === -Infinity ? [] : [{ who, at_ms: effective_ms }])),
  );
  const answers = await db.query<{ price: number }>(
    `SELECT price_in_force(who, to_timestamp(at_ms / 1000)) AS price
       FROM jsonb_to_recordset($1) AS asked (who text, at_ms float8)`,
    [JSON.stringify(asked)],
  );
  const prices = answers.map(({ price }) => price);
  expect(prices).toEqual(asked.map(({ who, at_ms }) => priceAt(rows, who, at_ms)));
  const toldInTime = asked.map(({ who, at_ms }) =>
    priceAt(
      rows.filter(({ recorded_ms }) => recorded_ms <= at_ms - 30 * DAY_MS),
      who,
      at_ms,
    ),
  );
  expect(prices.filter((price, at) => price > (toldInTime[at] ?? 0))).toEqual([]);
}
