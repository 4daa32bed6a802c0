/** What is refunded, to whom and when: the rules of money as a table, on the real ledger. */
import { randomBytes } from "node:crypto";

import { assert, asyncProperty, double, integer, record } from "fast-check";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";

import { adjustBalance } from "#billing/operator.ts";
import { newRequestId, type RolloutId } from "#contract/ids.ts";
import type { Outcome } from "#contract/jobs.ts";
import { mils } from "#contract/mils.ts";
import { closeCustomer } from "#keys/close.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { accountsOf, balanceOf } from "#ledger/ledger.ts";
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
  newCustomer,
  newRollout,
  owe as oweCents,
  succeeded,
} from "#test/support/ledger.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase({ poolMax: 20 });
  ({ db } = database);
});
afterEach(() => assertBooksBalance(db));
afterAll(() => database.drop());

async function running(credits = 100_000, k = 1): Promise<{ key: CreatedKey; rollout: Rollout }> {
  const key = await newCustomer(db, mils(credits));
  const rollout = await accept(db, key, { k });
  await dispatch(db, rollout.id);
  return { key, rollout };
}

interface Entry {
  readonly account: string;
  readonly kind: string;
  readonly amount_mils: bigint;
  readonly reference: string;
  readonly detail: string;
}

/** Ledger rows that name the request, in the order in which they were written. */
const entriesOf = (requestId: string): Promise<Entry[]> =>
  db.query<Entry>(
    `SELECT account, kind, amount_mils, reference, detail FROM ledger_entries
      WHERE reference = $1 ORDER BY account, seq`,
    [requestId],
  );

/** The balance is gone, and Stripe took a payment of whole cents back. */
async function owe(key: CreatedKey, amount: number): Promise<void> {
  const balance = await balanceOf(db, key.customer_id);
  const gone = { customer_id: key.customer_id, reference: `adjust_${key.key_id}`, operator: "a test", reason: "spent" };
  if (balance > 0n) await adjustBalance(db, { ...gone, amount: mils(0n - balance) });
  await oweCents(db, key.customer_id, amount / 100);
  expect(await accountsOf(db, key.customer_id)).toEqual({ balance_mils: 0n, debt_mils: BigInt(amount) });
}

/** Lost: nothing came back, and the sweep gives it up after its attempts. */
const lost: Outcome = { kind: "failed", code: "lost", message: "nobody knows of it", frames_delivered: 0 };

describe("in full", () => {
  test.for<[string, Outcome]>([
    ["failed", failed()],
    ["cancelled", cancelled],
    ["expired", expired],
    ["lost", lost],
  ])("when nothing was delivered: %s", async ([, outcome]) => {
    const { key, rollout } = await running(10_000);
    await settle(db, rollout.id, null, outcome);
    expect(await balanceOf(db, key.customer_id)).toBe(10_000n);
  });

  test.for<[string, Outcome]>([
    ["failed", failed()],
    ["cancelled", cancelled],
    ["expired", expired],
  ])("also of a rollout that never ran: %s", async ([, outcome]) => {
    const key = await newCustomer(db, mils(245));
    const rollout = await accept(db, key);
    expect(await balanceOf(db, key.customer_id)).toBe(0n);
    await settle(db, rollout.id, null, outcome);
    expect(await balanceOf(db, key.customer_id)).toBe(245n);
  });

  test("for each candidate of a batch", async () => {
    const { key, rollout } = await running(10_000, 8);
    expect(await balanceOf(db, key.customer_id)).toBe(10_000n - 8n * 245n);
    await settle(db, rollout.id, null, failed());
    expect(await balanceOf(db, key.customer_id)).toBe(10_000n);
  });
});

describe("in part, where frames were streamed before the end", () => {
  test.for([
    ["failed", (frames: number): Outcome => failed(frames)],
    ["cancelled", (frames: number): Outcome => ({ kind: "cancelled", frames_delivered: frames })],
    ["succeeded with fewer", (frames: number): Outcome => succeeded(frames)],
  ] as const)("every number of frames: %s", { timeout: 30_000 }, async ([, outcomeOf]) => {
    const key = await newCustomer(db, mils(1_000_000));
    let balance = 1_000_000n;
    for (let frames = 0; frames <= 49; frames++) {
      const rollout = await accept(db, key);
      await dispatch(db, rollout.id);
      const { rollout: ended } = await settle(db, rollout.id, 1, outcomeOf(frames));
      balance -= BigInt(frames) * 5n;
      expect(ended).toMatchObject({ frames_delivered: frames, refunded_mils: BigInt(49 - frames) * 5n });
      expect(await balanceOf(db, key.customer_id)).toBe(balance);
    }
  });

  test("a batch is paid for by the frame, across its candidates", async () => {
    const { key, rollout } = await running(10_000, 8);
    // Three candidates complete, the fourth up to its tenth frame.
    const { rollout: ended } = await settle(db, rollout.id, 1, failed(3 * 49 + 10));
    expect(ended?.refunded_mils).toBe(mils((8 * 49 - 157) * 5));
    expect(await balanceOf(db, key.customer_id)).toBe(10_000n - 157n * 5n);
  });

  test("never more than was paid, whatever a worker says it sent", async () => {
    const { key, rollout } = await running(10_000);
    await settle(db, rollout.id, 1, failed(1_000));
    expect(await balanceOf(db, key.customer_id)).toBe(10_000n - 245n);
  });

  test("whatever the price, the size and the frames: charge = earned + refunded, to the mil", async () => {
    const key = await newCustomer(db, mils(1_000_000_000));
    await assert(
      asyncProperty(
        record({
          price: integer({ min: 0, max: 1_000 }),
          k: integer({ min: 1, max: 32 }),
          actions: integer({ min: 1, max: 240 }),
          share: double({ min: 0, max: 1, noNaN: true }),
        }),
        async ({ price, k, actions, share }) => {
          await db.query(
            `INSERT INTO prices (customer_id, mils_per_frame, effective_from, note) VALUES ($1, $2, now(), 'a test')`,
            [key.customer_id, price],
          );
          const rollout = await accept(db, key, { k, actions_per_candidate: actions });
          await dispatch(db, rollout.id);
          const delivered = Math.floor(share * rollout.frames);
          const { rollout: ended } = await settle(db, rollout.id, 1, failed(delivered));
          expect(ended?.charge_mils).toBe(BigInt(k * (actions + 1) * price));
          expect(ended?.refunded_mils).toBe(BigInt((k * (actions + 1) - delivered) * price));
        },
      ),
      { numRuns: 60 },
    );
  });
});

describe("once", () => {
  test("however often and by whomever its end is told", async () => {
    const { key, rollout } = await running(10_000);
    const outcomes = [failed(9), failed(), cancelled, expired, lost, succeeded(), failed(9)];
    const settled = await Promise.all(outcomes.map((outcome) => settle(db, rollout.id, null, outcome)));
    expect(settled.filter((each) => each.settled)).toHaveLength(1);
    const refunds = (await entriesOf(rollout.request_id)).filter(({ kind }) => kind === "refund");
    const [ended] = settled;
    const due = ended?.rollout?.refunded_mils ?? 0n;
    expect(refunds.map(({ amount_mils }) => amount_mils)).toEqual(due === 0n ? [] : [due]);
    expect(await balanceOf(db, key.customer_id)).toBe(10_000n - 245n + due);
  });

  test("the database itself refuses a second refund of a rollout", async () => {
    const { rollout } = await running();
    await settle(db, rollout.id, 1, failed(9));
    await expect(
      db.query(
        `INSERT INTO ledger_entries
         SELECT customer_id, account, seq + 1, kind, amount_mils, balance_after_mils, rollout_id, reference, detail,
                created_at, hash, hash
           FROM ledger_entries WHERE rollout_id = $1 AND kind = 'refund'`,
        [rollout.id],
      ),
    ).rejects.toThrow("ledger_once_per_rollout");
  });

  test("a rollout that delivered everything has no refund row", async () => {
    const { rollout } = await running();
    await settle(db, rollout.id, 1, failed(49));
    expect((await entriesOf(rollout.request_id)).map(({ kind }) => kind)).toEqual(["debit"]);
  });
});

describe("to whom", () => {
  test("a customer that was closed meanwhile is refunded all the same", async () => {
    const { key, rollout } = await running(10_000);
    await db.transaction((tx) => closeCustomer(tx, key.customer_id));
    expect(await settle(db, rollout.id, 1, failed())).toMatchObject({ settled: true });
    expect(await balanceOf(db, key.customer_id)).toBe(10_000n);
  });

  test("a customer in debt pays it first: the refund is a row of its own, the repayment stands beside it", async () => {
    const { key, rollout } = await running(245);
    await owe(key, 100);
    await settle(db, rollout.id, 1, failed());

    expect(await accountsOf(db, key.customer_id)).toEqual({ balance_mils: 145n, debt_mils: 0n });
    const rows = await entriesOf(rollout.request_id);
    expect(rows.map(({ account, kind, amount_mils }) => [account, kind, amount_mils])).toEqual([
      ["balance", "debit", -245n],
      ["balance", "refund", 245n],
      ["balance", "clawback", -100n],
      ["debt", "clawback", -100n],
    ]);
  });

  test("a debt above the refund keeps all of it", async () => {
    const { key, rollout } = await running(245);
    await owe(key, 1_000);
    await settle(db, rollout.id, 1, failed(9));
    expect(await accountsOf(db, key.customer_id)).toEqual({ balance_mils: 0n, debt_mils: 800n });
  });

  test("many refunds at once pay one debt once", async () => {
    const key = await newCustomer(db, mils(20 * 245));
    const ids: RolloutId[] = [];
    for (let i = 0; i < 20; i++) ids.push((await accept(db, key)).id);
    await owe(key, 1_000);
    await Promise.all(ids.map((id) => settle(db, id, null, failed())));
    expect(await accountsOf(db, key.customer_id)).toEqual({ balance_mils: 3_900n, debt_mils: 0n });
  });
});

test("a debit and its refund are rows of their own, joined by the request's id", async () => {
  const key = await newCustomer(db, mils(10_000));
  const request_id = newRequestId(randomBytes);
  const rollout = await accept(db, key, newRollout(key, { request_id }));
  await dispatch(db, rollout.id);
  await settle(db, rollout.id, 1, failed(20));
  expect(await entriesOf(request_id)).toEqual([
    {
      account: "balance",
      kind: "debit",
      amount_mils: -245n,
      reference: request_id,
      detail: "predict · pusht-small · 49 frames",
    },
    {
      account: "balance",
      kind: "refund",
      amount_mils: 145n,
      reference: request_id,
      detail: "refund · pusht-small · 29 frames",
    },
  ]);
});
