/** Balance, transactions and statements over HTTP. */
import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { clawBack, reinstate } from "#ledger/clawback.ts";
import { credit } from "#ledger/ledger.ts";

import { getWithKey, postForm, predictParts } from "./support/requests.ts";
import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

interface Transaction {
  id: string;
  seq: number;
  kind: string;
  ledger_kind: string;
  amount_mils: number;
  balance_after_mils: number;
  reference: string;
  rollout_id: string | null;
  detail: string;
  hash: string;
}

let t: TestGateway;
let nowMs = Date.now();
beforeAll(async () => {
  t = await startTestGateway({ clock: { now: () => nowMs } });
});
afterAll(() => t.stop());

const month = (at = new Date()): string => at.toISOString().slice(0, 7);

const page = async (key: CreatedKey, query: string) =>
  (await getWithKey(t.app, `/v1/billing/transactions?${query}`, key.api_key)).json<{
    transactions: Transaction[];
    next_cursor: string | null;
  }>();

describe("balance", () => {
  test("shows what is owed beside a balance of nothing", async () => {
    const key = await t.newKey(mils(300));
    await clawBack(t.db, { customer_id: key.customer_id, amount: mils(1_000), reference: "paid_a", detail: "dispute" });
    expect((await getWithKey(t.app, "/v1/billing/balance", key.api_key)).json()).toEqual({
      customer_id: key.customer_id,
      balance_mils: 0,
      balance_cents: 0,
      balance_usd: 0,
      debt_mils: 700,
    });
  });
});

describe("transactions", () => {
  test("come page by page, each once, also while new ones are made", async () => {
    const key = await t.newKey(mils(1));
    const more = (n: number) =>
      credit(t.db, { customer_id: key.customer_id, amount: mils(n), reference: `page_${n}`, detail: "more" });
    for (let n = 2; n <= 10; n++) await more(n);
    const seen: number[] = [];
    let after = "";
    for (let pages = 0; ; pages++) {
      const { transactions, next_cursor } = await page(key, `limit=3${after}`);
      seen.push(...transactions.map(({ amount_mils }) => amount_mils));
      await more(100 + pages);
      if (next_cursor === null) break;
      expect(transactions).toHaveLength(3);
      after = `&after=${next_cursor}`;
    }
    expect(seen).toEqual([10, 9, 8, 7, 6, 5, 4, 3, 2, 1]);
  });

  test("end without a cursor where the last page is full", async () => {
    const key = await t.newKey(mils(1));
    expect((await page(key, "limit=1")).next_cursor).toBeNull();
    expect((await page(key, "")).next_cursor).toBeNull();
  });

  test.each([
    "x",
    "seq:3",
    Buffer.from("seq:0").toString("base64url"),
    Buffer.from("seq:-1").toString("base64url"),
    "c2VxOjM=",
    "c2VxOjM\n",
    "%27",
    "c2VxOjM".repeat(50),
  ])("refuse %j as a cursor and say what is one", async (cursor) => {
    const key = await t.newKey(mils(1));
    const answer = await getWithKey(t.app, `/v1/billing/transactions?after=${encodeURIComponent(cursor)}`, key.api_key);
    expect(answer.statusCode).toBe(422);
    expect(answer.json().detail).toMatch(/^after: expected the next_cursor of an earlier answer, got "/);
  });

  test("a cursor shows its bearer's own entries, whoever got it", async () => {
    const [rich, poor] = [await t.newKey(mils(10)), await t.newKey(mils(20))];
    for (const { customer_id } of [rich, poor]) {
      await credit(t.db, { customer_id, amount: mils(5), reference: `cursor_${customer_id}`, detail: "more" });
    }
    const { next_cursor } = await page(rich, "limit=1");
    expect((await page(poor, `after=${next_cursor}`)).transactions.map(({ amount_mils }) => amount_mils)).toEqual([20]);
  });

  test("a refund is a row of its own with its debit's id and rollout", async () => {
    const key = await t.newKey(mils(1_000));
    t.worker.fate = { fail: "engine_failed" };
    const failed = await postForm(t.app, "/v1/predict", key.api_key, await predictParts());
    const [refund, debit] = (await page(key, "limit=2")).transactions;
    const id = failed.headers["x-dreamengine-request-id"];
    expect(refund).toMatchObject({ id, kind: "refund", amount_mils: 245, detail: "refund · pusher · 49 frames" });
    expect(debit).toMatchObject({ id, kind: "debit", amount_mils: -245 });
    expect(refund?.rollout_id).toBe(debit?.rollout_id);
    expect(refund?.rollout_id).toMatch(/^rollout_/);
    expect(refund?.seq).toBe(3);
    expect(refund?.hash).toMatch(/^[0-9a-f]{64}$/);
  });

  test("a top-up has the id of Stripe's event where that is known, else the payment's", async () => {
    const key = await t.newKey(mils(1));
    for (const [payment, event] of [
      ["pi_known", "evt_1"],
      ["pi_found", null],
    ] as const) {
      await t.db.query(
        "INSERT INTO payments (id, paid_cents, credited_mils, credited_by_event) VALUES ($1, 5, 500, $2)",
        [payment, event],
      );
      await credit(t.db, { customer_id: key.customer_id, amount: mils(500), reference: payment, detail: "top-up" });
    }
    const { transactions } = await page(key, "limit=2");
    expect(transactions).toMatchObject([
      { id: "pi_found", reference: "pi_found", kind: "credit" },
      { id: "evt_1", reference: "pi_known", kind: "credit" },
    ]);
  });

  test("what Stripe took back or gave back shows as debit or credit, by its sign", async () => {
    const key = await t.newKey(mils(1_000));
    const dispute = { customer_id: key.customer_id, amount: mils(400), reference: "paid_b", detail: "dispute" };
    await clawBack(t.db, dispute);
    await reinstate(t.db, { ...dispute, detail: "dispute won" });
    expect((await page(key, "limit=2")).transactions).toMatchObject([
      { kind: "credit", ledger_kind: "clawback", amount_mils: 400, detail: "dispute won" },
      { kind: "debit", ledger_kind: "clawback", amount_mils: -400, detail: "dispute" },
    ]);
  });
});

describe("statement", () => {
  let key: CreatedKey;
  let folder: string;
  beforeAll(async () => {
    key = await t.newKey(mils(1_000));
    folder = await mkdtemp(join(tmpdir(), "dream-billing-"));
    t.worker.fate = "succeed";
    await postForm(t.app, "/v1/predict", key.api_key, await predictParts());
    t.worker.fate = { fail: "engine_failed" };
    await postForm(t.app, "/v1/predict", key.api_key, await predictParts({ seed: "1" }));
    await clawBack(t.db, { customer_id: key.customer_id, amount: mils(2_000), reference: "paid_c", detail: "dispute" });
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  const statement = (query: string, headers: Record<string, string> = {}) =>
    t.app.inject({
      url: `/v1/billing/statement?${query}`,
      headers: { authorization: `Bearer ${key.api_key}`, ...headers },
    });

  test("agrees with transactions and balance, entry by entry", async () => {
    const answer = await statement(`month=${month()}`);
    expect(answer.statusCode).toBe(200);
    expect(answer.headers).toMatchObject({
      "content-type": "application/json; charset=utf-8",
      "content-disposition": `attachment; filename="statement-${key.customer_id}-${month()}.json"`,
    });
    const { accounts, complete } = answer.json();
    expect(complete).toBe(false);
    const { transactions } = (await getWithKey(t.app, "/v1/billing/transactions", key.api_key)).json<{
      transactions: Transaction[];
    }>();
    const picked = ({ seq, reference, rollout_id, detail, amount_mils, balance_after_mils, hash }: Transaction) => ({
      seq,
      reference,
      rollout_id,
      detail,
      amount_mils,
      balance_after_mils,
      hash,
    });
    expect(accounts[0].entries.map(picked)).toEqual(transactions.toReversed().map(picked));
    expect(accounts[0].closing).toMatchObject({ seq: transactions.length, balance_mils: 0 });
    expect(accounts[1]).toMatchObject({ account: "debt", closing: { seq: 1, balance_mils: 1_245 } });
  });

  test.each([
    ["format=json", {}],
    ["format=csv", {}],
    ["", { accept: "text/csv" }],
  ])("verifies with the example that customers get (%s %j)", async (format, headers) => {
    const answer = await statement(`month=${month()}&${format}`, headers);
    const file = join(folder, "statement");
    await writeFile(file, answer.rawPayload);
    const { stdout } = await promisify(execFile)("python3", ["examples/verify_statement.py", file]);
    expect(stdout).toMatch(/^OK: 6 entries, balance 0 mils, debt 1245 mils\nmore entries may come in that month/);
  });

  test.each([
    ["month=M", { accept: "text/csv" }, "text/csv"],
    ["month=M", { accept: "text/csv;q=0.5, application/json" }, "application/json"],
    ["month=M", { accept: "application/json;q=0.5, text/csv" }, "text/csv"],
    ["month=M", { accept: "*/*" }, "application/json"],
    ["month=M&format=json", { accept: "text/csv" }, "application/json"],
    ["month=M&format=csv", { accept: "application/json" }, "text/csv"],
  ])("%s with %j is answered as %s", async (query, headers, type) => {
    const answer = await statement(query.replace("M", month()), headers);
    expect(answer.headers["content-type"]).toMatch(new RegExp(`^${type}`));
    expect(answer.headers.vary).toBe("Accept");
  });

  test("is empty for a month before the account was opened", async () => {
    const { accounts, complete } = (await statement("month=2020-02")).json();
    expect(complete).toBe(true);
    const nothing = { seq: 0, balance_mils: 0, head_hash: "" };
    expect(accounts).toEqual([
      { account: "balance", opening: nothing, entries: [], closing: nothing },
      { account: "debt", opening: nothing, entries: [], closing: nothing },
    ]);
  });

  test("is complete some minutes after the month's end, when no entry of it can come any more", async () => {
    const complete: boolean[] = [];
    for (const at of ["2026-02-28T23:59:59Z", "2026-03-01T00:01:00Z", "2026-03-01T00:05:00Z"]) {
      nowMs = Date.parse(at);
      complete.push((await statement("month=2026-02")).json().complete);
    }
    nowMs = Date.now();
    expect(complete).toEqual([false, false, true]);
  });

  test.each([
    ["month=2999-01", /^month: 2999-01 has not begun \(UTC\); the present one is \d{4}-\d\d$/],
    ["month=2026-13", /^month: expected one such as 2026-11, from 2000-01 to \d{4}-\d\d; got "2026-13"$/],
    ["month=2026-1", /^month: expected one such as/],
    ["month=0000-01", /^month: expected one such as/],
    ["month=2026-11-01", /^month: expected one such as/],
    ["month=2026-11%27--", /^month: expected one such as/],
    ["month=", /^month: expected one such as/],
    ["month=1999-01", /^month: expected .* from 2000-01 to/],
    ["", /^querystring\.month: expected one such as "2026-11", got none$/],
    ["month=2026-11&format=xml", /^querystring\.format: expected "json" or "csv", got "xml"$/],
  ])("refuses %s", async (query, detail) => {
    const answer = await statement(query);
    expect(answer.statusCode).toBe(422);
    expect(answer.json().detail).toMatch(detail);
  });

  test("is its customer's own", async () => {
    const other = await t.newKey(mils(7));
    const own = (await getWithKey(t.app, `/v1/billing/statement?month=${month()}`, other.api_key)).json();
    expect(own.customer_id).toBe(other.customer_id);
    expect(own.accounts[0].entries).toHaveLength(1);
    expect((await t.app.inject({ url: `/v1/billing/statement?month=${month()}` })).statusCode).toBe(401);
  });

  test("a caller who goes away in the middle ends the reading, and the gateway goes on", async () => {
    const { customer_id, api_key } = await t.newKey(mils(1));
    await t.db.query(
      `DO $$ BEGIN FOR i IN 1..1200 LOOP
         PERFORM post_ledger_entry('${customer_id}', 'balance', 'clawback', 1, 'long', repeat('x', 1000));
       END LOOP; END $$`,
    );
    const server = await t.listen();
    const leaving = new AbortController();
    const answer = await fetch(`${server.url}/v1/billing/statement?month=${month()}`, {
      headers: { authorization: `Bearer ${api_key}` },
      signal: leaving.signal,
    });
    const reader = answer.body?.getReader();
    expect((await reader?.read())?.done).toBe(false);
    leaving.abort();
    expect((await statement(`month=${month()}`)).statusCode).toBe(200);
    const whole = await fetch(`${server.url}/v1/billing/statement?month=${month()}&format=csv`, {
      headers: { authorization: `Bearer ${api_key}` },
    });
    expect((await whole.text()).split("\r\n")).toHaveLength(1 + 1_201 + 4 + 1);
  });
});
