/** Statements of a month: its range of entries, and how they are written. */
import * as fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

import type { CustomerId } from "#contract/ids.ts";
import { mils } from "#contract/mils.ts";
import { statementEntries, statementRanges } from "#ledger/statement.ts";
import { verifyLedger } from "#ledger/verify.ts";
import type { Database } from "#platform/database.ts";
import { newCustomer } from "#test/support/ledger.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

import { all, beginOf, customerOfSeveralMonths, MONTHS, post, statementText } from "./statement-fixture.ts";

let database: TestDatabase;
let db: Database;
let customer: CustomerId;
beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
  customer = await customerOfSeveralMonths(db);
});
afterAll(() => database.drop());

const rangesOf = (from: string, to: string) => statementRanges(db, customer, beginOf(from), beginOf(to));

const textOf = (format: "json" | "csv", from: string, to: string): Promise<string> =>
  statementText(db, customer, format, from, to);

describe("the range of a month", () => {
  test("holds what was entered from its first microsecond to its last, in UTC", async () => {
    const shown = [];
    for (const [from, to] of MONTHS) {
      const [balance, debt] = await rangesOf(from, to);
      shown.push([balance?.opening.seq, balance?.closing.seq, debt?.opening.seq, debt?.closing.seq].map(Number));
    }
    expect(shown).toEqual([
      [0, 1, 0, 0],
      [1, 4, 0, 1],
      [4, 4, 1, 1],
      [4, 5, 1, 2],
    ]);
  });

  test("opens where the month before closed, with balance and hash", async () => {
    const states = [];
    for (const [from, to] of MONTHS) states.push(await rangesOf(from, to));
    for (const [index, later] of states.entries()) {
      const earlier = states[index - 1];
      if (!earlier) continue;
      expect(later.map(({ opening }) => opening)).toEqual(earlier.map(({ closing }) => closing));
    }
    expect(states[0]?.[0]?.opening).toEqual({ seq: 0n, balance_mils: 0n, head_hash: Buffer.alloc(0) });
    expect(states[3]?.[0]?.closing.balance_mils).toBe(2n ** 60n + 1n);
  });

  test("is empty before the first entry and after the last", async () => {
    for (const year of ["2001", "2099"]) {
      const [balance, debt] = await rangesOf(`${year}-01`, `${year}-02`);
      expect(balance?.opening).toEqual(balance?.closing);
      expect(debt?.opening).toEqual(debt?.closing);
    }
  });

  test("is found for any entries and any month", async () => {
    const at = fc.integer({ min: 0, max: 120 }).map((hours) => Date.UTC(2024, 1, 27) + hours * 3_600_000);
    await fc.assert(
      fc.asyncProperty(fc.array(at, { maxLength: 12 }), fc.integer({ min: 0, max: 120 }), async (times, hours) => {
        const { customer_id } = await newCustomer(db, mils(0));
        for (const time of times.toSorted((a, b) => a - b))
          await post(db, customer_id, new Date(time).toISOString(), 1);
        const from = new Date(Date.UTC(2024, 1, 27) + hours * 3_600_000);
        const to = new Date(from.getTime() + 24 * 3_600_000);
        const [range] = await statementRanges(db, customer_id, from, to);
        expect(range?.opening.seq).toBe(BigInt(times.filter((time) => time < from.getTime()).length));
        expect(range?.closing.seq).toBe(BigInt(times.filter((time) => time < to.getTime()).length));
      }),
      { numRuns: 30 },
    );
  });

  test("refuses to show an account with a gap as if it were whole", async () => {
    const { customer_id } = await newCustomer(db, mils(0));
    for (let day = 1; day <= 3; day++) await post(db, customer_id, `2025-03-0${day}T00:00:00Z`, 1);
    await db.transaction(async (tx) => {
      await tx.query("SET LOCAL session_replication_role = replica");
      await tx.query("DELETE FROM ledger_entries WHERE customer_id = $1 AND seq = 2", [customer_id]);
    });
    await expect(
      (async () => {
        for (const range of await statementRanges(db, customer_id, beginOf("2025-03"), beginOf("2025-04"))) {
          await all(statementEntries(db, customer_id, range));
        }
      })(),
    ).rejects.toThrow(/not whole|missing/);
    expect(await verifyLedger(db)).toContainEqual(expect.stringContaining("follows entry 1"));
  });
});

describe("as text", () => {
  test("JSON is exact, and has every field that is hashed", async () => {
    const text = await textOf("json", "2026-01", "2026-02");
    expect(text).toContain(`"balance_after_mils":${2n ** 60n + 1n}`);
    const statement = JSON.parse(await textOf("json", "2025-11", "2025-12"));
    expect(statement).toMatchObject({ object: "statement", customer_id: customer, month: "2025-11", complete: true });
    expect(statement.accounts.map((one: { account: string }) => one.account)).toEqual(["balance", "debt"]);
    expect(statement.accounts[0].entries[0]).toEqual({
      seq: 2,
      kind: "clawback",
      rollout_id: null,
      reference: "=HYPERLINK(1)",
      detail: 'said "no, thanks"\r\n',
      created_at: "2025-11-01T00:00:00.000000Z",
      amount_mils: 20,
      balance_after_mils: 520,
      prev_hash: statement.accounts[0].opening.head_hash,
      hash: expect.stringMatching(/^[0-9a-f]{64}$/),
    });
  });

  test("CSV quotes by RFC 4180, and no text is a spreadsheet's formula", async () => {
    const text = await textOf("csv", "2025-11", "2025-12");
    expect(text.endsWith("\r\n")).toBe(true);
    expect(text).toContain(`,'=HYPERLINK(1),"said ""no, thanks""\r\n",`);
    expect(text).toContain(`,'+1 · ünïcode · 'quoted',`);
    expect(text).toContain(`,''leading,`);
    expect(text).toContain(`,'@dispute,`);
    const lines = text.split("\r\n");
    expect(lines[0]).toBe(
      "customer_id,account,seq,created_at,kind,amount_mils,balance_after_mils,rollout_id,reference,detail,prev_hash,hash",
    );
    expect(lines.filter((line) => line.includes(",opening,"))).toHaveLength(2);
    expect(lines.filter((line) => line.includes(",closing,"))).toHaveLength(2);
  });

  test("what is entered while a statement is read is not in it, and does not disturb it", async () => {
    const { customer_id } = await newCustomer(db, mils(0));
    await post(db, customer_id, "2025-06-01T00:00:00Z", 5);
    const ranges = await statementRanges(db, customer_id, beginOf("2025-06"), beginOf("2025-07"));
    await post(db, customer_id, "2025-06-02T00:00:00Z", 6);
    await post(db, customer_id, "2025-06-02T00:00:00Z", 7, { account: "debt" });
    const entries = [];
    for (const range of ranges) entries.push(...(await all(statementEntries(db, customer_id, range))));
    expect(entries.map(({ amount_mils }) => amount_mils)).toEqual([5n]);
    expect(ranges[0]?.closing).toEqual({ seq: 1n, balance_mils: 5n, head_hash: entries[0]?.hash });
  });

  test("a long month comes page by page", async () => {
    const { customer_id } = await newCustomer(db, mils(0));
    await db.query(
      `DO $$ BEGIN FOR i IN 1..2345 LOOP
         PERFORM post_ledger_entry('${customer_id}', 'balance', 'clawback', 1, 'page', 'x');
       END LOOP; END $$`,
    );
    const now = new Date();
    const from = new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth(), 1));
    const [range] = await statementRanges(db, customer_id, from, new Date(now.getTime() + 60_000));
    if (!range) throw new Error("no range");
    const entries = await all(statementEntries(db, customer_id, range));
    expect(entries.map(({ seq }) => Number(seq))).toEqual(Array.from({ length: 2345 }, (_, index) => index + 1));
  });
});
