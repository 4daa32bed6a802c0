/**
 * One Idempotency-Key is one rollout and one charge: however many send it at once, to however many gateways, whatever
 * becomes of the connection that it came by, and whatever became of the rollout.
 */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { createDatabase, type Database } from "#platform/database.ts";
import { assertBooksBalance } from "#test/support/ledger.ts";
import { type PgProxy, startPgProxy } from "#test/support/pg-proxy.ts";
import { silentLog } from "#test/support/postgres.ts";

import { eventually } from "./support/books.ts";
import { FORM_TYPE, formBody, rolloutParts } from "./support/requests.ts";
import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

const COPIES = 50;
const CHARGE = 245n;

let t: TestGateway;
const urls: string[] = [];
let key: CreatedKey;

beforeAll(async () => {
  t = await startTestGateway();
  for (let n = 0; n < 2; n++) urls.push((await t.listen()).url);
});
afterAll(async () => {
  await assertBooksBalance(t.db);
  await t.stop();
});
beforeEach(async () => {
  // Enough for all copies: nothing but the key keeps them from being charged.
  key = await t.newKey(mils(BigInt(COPIES) * CHARGE));
});
afterEach(() => {
  t.worker.fate = "succeed";
});

interface Answer {
  readonly status: number;
  readonly body: { readonly id: string; readonly status: string; readonly error: { readonly code: string } | null };
}

async function send(url: string, params: string, idempotencyKey: string): Promise<Answer> {
  const answer = await fetch(`${url}/v1/rollouts`, {
    method: "POST",
    headers: {
      authorization: `Bearer ${key.api_key}`,
      "content-type": FORM_TYPE,
      "idempotency-key": idempotencyKey,
    },
    body: new Uint8Array(formBody(await rolloutParts(params))),
  });
  return { status: answer.status, body: (await answer.json()) as Answer["body"] }; // our own answers
}

interface Taken {
  readonly rollouts: number;
  readonly debits: number;
  readonly balance: bigint;
}

async function taken(): Promise<Taken> {
  const [row] = await t.db.query<Taken>(
    `SELECT (SELECT count(*) FROM rollouts WHERE customer_id = $1)::int AS rollouts,
            (SELECT count(*) FROM ledger_entries WHERE customer_id = $1 AND kind = 'debit')::int AS debits,
            balance_mils AS balance
       FROM accounts WHERE customer_id = $1 AND account = 'balance'`,
    [key.customer_id],
  );
  if (!row) throw new Error("no account");
  return row;
}

const ONCE = { rollouts: 1, debits: 1, balance: BigInt(COPIES - 1) * CHARGE };

describe.each([
  ["one gateway", 1],
  ["two gateways", 2],
] as const)(`${COPIES} copies at once to %s`, (_, gateways) => {
  test("that wait are one rollout, one debit, and all get it", async () => {
    const copies = Array.from({ length: COPIES }, (_copy, n) => send(urls[n % gateways] ?? "", "{}", "race"));
    const answers = await Promise.all(copies);
    expect(answers.map(({ status }) => status)).toEqual(answers.map(() => 200));
    expect(new Set(answers.map(({ body }) => body.id)).size).toBe(1);
    expect(new Set(answers.map(({ body }) => body.status))).toEqual(new Set(["succeeded"]));
    expect(await taken()).toEqual(ONCE);
  });

  test("that do not wait are one rollout, one debit, and all are told of it", async () => {
    t.worker.fate = "hang";
    const params = '{"mode":"async"}';
    const copies = Array.from({ length: COPIES }, (_copy, n) => send(urls[n % gateways] ?? "", params, "race"));
    const answers = await Promise.all(copies);
    expect(answers.map(({ status }) => status)).toEqual(answers.map(() => 202));
    expect(new Set(answers.map(({ body }) => body.id)).size).toBe(1);
    expect(await taken()).toEqual(ONCE);
    await t.worker.finishHanging();
    expect(await send(urls[0] ?? "", params, "race")).toMatchObject({ status: 200, body: { status: "succeeded" } });
  });

  test("in both modes are one rollout, one debit", async () => {
    const answers = await Promise.all(
      Array.from({ length: COPIES }, (_copy, n) =>
        send(urls[n % gateways] ?? "", n % 2 === 0 ? "{}" : '{"mode":"async"}', "race"),
      ),
    );
    for (const { status } of answers) expect([200, 202]).toContain(status);
    expect(new Set(answers.map(({ body }) => body.id)).size).toBe(1);
    expect(await taken()).toEqual(ONCE);
  });

  test("of a rollout that fails are told the same failure, refunded once", async () => {
    t.worker.fate = { fail: "engine_failed" };
    const answers = await Promise.all(
      Array.from({ length: COPIES }, (_copy, n) => send(urls[n % gateways] ?? "", "{}", "race")),
    );
    expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([500]));
    t.worker.fate = "succeed";
    expect(await send(urls[0] ?? "", "{}", "race")).toMatchObject({
      status: 500,
      body: { error: { code: "engine_failed" } },
    });
    expect(await taken()).toEqual({ rollouts: 1, debits: 1, balance: BigInt(COPIES) * CHARGE });
  });

  test("half of them with another payload: one payload wins, the others are 422", async () => {
    const answers = await Promise.all(
      Array.from({ length: COPIES }, (_copy, n) => send(urls[n % gateways] ?? "", `{"seed":${n % 2}}`, "race")),
    );
    const won = answers.filter(({ status }) => status === 200);
    const lost = answers.filter(({ status }) => status !== 200);
    expect(won).toHaveLength(COPIES / 2);
    for (const { status, body } of lost) {
      expect(status).toBe(422);
      expect(body.error?.code).toBe("idempotency_mismatch");
    }
    expect(await taken()).toEqual(ONCE);
  });
});

const age = (by: string): Promise<unknown> =>
  t.db.query(`UPDATE idempotency_keys SET created_at = now() - $2::interval WHERE customer_id = $1`, [
    key.customer_id,
    by,
  ]);

test("is kept for 24 hours, and free after that", async () => {
  const first = await send(urls[0] ?? "", "{}", "a-day");
  await age("23 hours 59 minutes");
  expect((await send(urls[1] ?? "", "{}", "a-day")).body.id).toBe(first.body.id);
  await age("24 hours 1 second");
  expect((await send(urls[1] ?? "", "{}", "a-day")).body.id).not.toBe(first.body.id);
  expect(await taken()).toMatchObject({ rollouts: 2, debits: 2 });
});

describe("a connection to the database that breaks when the rollout is committed, and its answer is not there yet", () => {
  let own: TestGateway;
  let proxy: PgProxy;
  let caller: CreatedKey;
  /** The gateway's way to the database, once there is a proxy on it. */
  let shaky: Database | undefined;

  beforeAll(async () => {
    own = await startTestGateway({}, (db) => ({
      ...db,
      query: (text, params) => (shaky ?? db).query(text, params),
      transaction: (run) => (shaky ?? db).transaction(run),
    }));
    proxy = await startPgProxy(own.as("gateway").pool.options.connectionString ?? "");
    shaky = createDatabase({ url: proxy.url, log: silentLog });
  });
  afterAll(async () => {
    await shaky?.stop();
    await proxy.stop();
    await own.stop();
  });

  beforeEach(async () => {
    own.worker.fate = "hang";
    caller = await own.newKey(mils(490));
    let cut = false;
    proxy.faultOf = ({ text }) => {
      if (cut || !text.includes("INSERT INTO rollouts")) return null;
      cut = true;
      return "cut after";
    };
  });

  const request = async (mode: string, headers: Record<string, string>) =>
    own.app.inject({
      method: "POST",
      url: "/v1/rollouts",
      headers: { authorization: `Bearer ${caller.api_key}`, "content-type": FORM_TYPE, ...headers },
      payload: formBody(await rolloutParts(`{"mode":"${mode}"}`)),
    });

  const rows = () =>
    own.db.query<{ id: string; status: string }>(
      `SELECT id, status FROM rollouts WHERE customer_id = $1 ORDER BY created_at`,
      [caller.customer_id],
    );

  test("asynchronous, with a key: it lives on, and the same key leads to it", async () => {
    const header = { "idempotency-key": "broken" };
    const broken = await request("async", header);
    expect(broken.statusCode).toBe(503);
    expect(broken.json().error.code).toBe("ledger_unavailable");
    expect(broken.json().detail).toContain("repeat the request with the same Idempotency-Key");
    const [paid] = await rows();
    const again = await request("async", header);
    expect(again.statusCode).toBe(202);
    expect(again.json()).toMatchObject({ id: paid?.id, status: "queued" });
    await own.worker.finishHanging();
    expect(await rows()).toEqual([{ id: paid?.id, status: "succeeded" }]);
  });

  test.for([
    ["asynchronous, without a key: nobody could find it, so it is cancelled and refunded", "async", {}, 202],
    ["synchronous: cancelled and refunded, and the same key runs anew", "sync", { "idempotency-key": "broken" }, 200],
  ] as const)("%s", async ([, mode, headers, status]) => {
    const broken = await request(mode, headers);
    expect(broken.statusCode).toBe(503);
    expect(broken.json().detail).toContain("what was charged for this request, if anything, is refunded");
    await eventually(rows, ([row]) => row?.status === "cancelled");
    const again = request(mode, headers);
    await eventually(rows, (all) => all.length === 2);
    await own.worker.finishHanging();
    expect((await again).statusCode).toBe(status);
    expect((await rows()).map((row) => row.status)).toEqual(["cancelled", "succeeded"]);
    const [row] = await own.db.query<{ balance: bigint }>(
      `SELECT balance_mils AS balance FROM accounts WHERE customer_id = $1 AND account = 'balance'`,
      [caller.customer_id],
    );
    expect(row?.balance).toBe(CHARGE);
  });
});
