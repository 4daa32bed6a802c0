/** A customer whose calls all end at once, as after a crash of their process: nobody else may notice. */
import { afterAll, beforeAll, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { assertBooksBalance, CHARGE } from "#test/support/ledger.ts";

import { booksOf, eventually } from "./support/books.ts";
import { FORM_TYPE, formBody, predictParts } from "./support/requests.ts";
import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

const CALLS = 50;

let t: TestGateway;
beforeAll(async () => {
  t = await startTestGateway();
});
afterAll(async () => {
  await assertBooksBalance(t.db);
  await t.stop();
});

/** Connections that wait for a lock; a gateway has ten. */
const connectionsWaiting = async (): Promise<number> => {
  const rows = await t.db.query(
    "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
  );
  return rows.length;
};

/** Milliseconds of a call from its sending to its video. */
async function timeOfCall(url: string, key: CreatedKey): Promise<number> {
  const body = new Uint8Array(formBody(await predictParts()));
  const headers = { authorization: `Bearer ${key.api_key}`, "content-type": FORM_TYPE };
  const startedAt = performance.now();
  const signal = AbortSignal.timeout(5_000);
  const answer = await fetch(`${url}/v1/predict`, { method: "POST", body, headers, signal });
  expect(answer.status).toBe(200);
  await answer.arrayBuffer();
  return performance.now() - startedAt;
}

test("50 calls given up while the account is locked by somebody else: one connection waits, another customer is served", async () => {
  const [busy, other] = [await t.newKey(mils(BigInt(CALLS) * CHARGE)), await t.newKey()];
  const server = await t.listen();
  await timeOfCall(server.url, other); // makes the video, which takes longest
  const body = new Uint8Array(formBody(await predictParts()));
  const headers = { authorization: `Bearer ${busy.api_key}`, "content-type": FORM_TYPE };
  const leave = new AbortController();
  t.worker.fate = "hang";
  const calls = Array.from({ length: CALLS }, () =>
    fetch(`${server.url}/v1/predict`, { method: "POST", body, headers, signal: leave.signal }).then(
      ({ status }) => status,
      () => "gone",
    ),
  );
  await eventually(
    () => booksOf(t, busy.customer_id),
    ({ balance }) => balance === 0n,
  );
  // One that is taken later would succeed, and wait for the locked account with the others behind it.
  await expect.poll(() => t.worker.taken.length, { timeout: 5_000, interval: 10 }).toBe(1 + CALLS);
  t.worker.fate = "succeed";

  const holder = await t.db.pool.connect();
  const times: number[] = [];
  let waiting = 0;
  try {
    await holder.query("BEGIN");
    await holder.query("UPDATE accounts SET seq = seq WHERE customer_id = $1", [busy.customer_id]);
    leave.abort();
    expect(await Promise.all(calls)).toEqual(Array.from({ length: CALLS }, () => "gone"));
    await expect.poll(connectionsWaiting, { timeout: 5_000, interval: 10 }).toBeGreaterThan(0);
    for (let n = 0; n < 5; n++) times.push(await timeOfCall(server.url, other));
    waiting = await connectionsWaiting();
  } finally {
    await holder.query("ROLLBACK");
    holder.release();
  }
  expect(waiting).toBe(1);
  expect(Math.max(...times)).toBeLessThan(2_000);
  await eventually(
    () => booksOf(t, busy.customer_id),
    ({ balance }) => balance === BigInt(CALLS) * CHARGE,
  );
  await server.stop();
});
