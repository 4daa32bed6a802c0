/** `POST /v1/rollouts/{id}/cancel`: refunded once, whoever else is at it. */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";

import { jobIdOf } from "#contract/ids.ts";
import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { predictQueue } from "#queue/queues.ts";
import type { Signal } from "#queue/signals.ts";
import { predictJobOf } from "#rollouts/dispatch.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import { settle } from "#rollouts/settle.ts";
import { assertBooksBalance, failed, succeeded } from "#test/support/ledger.ts";

import { booksOf, eventually } from "./support/books.ts";
import { getWithKey, postForm, predictParts, rolloutParts } from "./support/requests.ts";
import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

let t: TestGateway;
let key: CreatedKey;
const signals: Signal[] = [];

beforeAll(async () => {
  t = await startTestGateway();
  await t.queues.signals.subscribe(["cancel", "finished"], (signal) => void signals.push(signal));
});
afterAll(async () => {
  await assertBooksBalance(t.db);
  await t.stop();
});
beforeEach(async () => {
  key = await t.newKey(mils(245));
  signals.length = 0;
});
afterEach(() => {
  t.worker.fate = "succeed";
});

const submit = async (headers: Record<string, string> = {}): Promise<string> =>
  (await postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts('{"mode":"async"}'), headers)).json().id;

const cancel = (id: string, apiKey = key.api_key) =>
  t.app.inject({
    method: "POST",
    url: `/v1/rollouts/${id}/cancel`,
    headers: { authorization: `Bearer ${apiKey}` },
  });

const balance = async (): Promise<bigint> => (await booksOf(t, key.customer_id)).balance;

const until = (id: string, status: string): Promise<Rollout | undefined> =>
  eventually(
    async () => (await t.db.query<Rollout>(`SELECT * FROM rollouts WHERE id = $1`, [id]))[0],
    (row) => row?.status === status,
  );

test("what waits is cancelled at once, refunded in full, and shown so", async () => {
  t.worker.fate = "hang";
  const id = await submit();
  const answer = await cancel(id);
  expect(answer.statusCode).toBe(200);
  expect(answer.json()).toMatchObject({
    id,
    status: "cancelled",
    refunded_mils: 245,
    cost_mils: 0,
    queue_position: null,
  });
  expect(answer.json().finished).not.toBeNull();
  expect(await balance()).toBe(245n);
  expect((await getWithKey(t.app, `/v1/rollouts/${id}`, key.api_key)).json().status).toBe("cancelled");
});

test("of what runs the worker is told, and its job is taken out of the queue", async () => {
  t.worker.fate = "hang dispatched";
  const id = await submit();
  const row = await until(id, "dispatched");
  if (!row) throw new Error("no rollout");
  const queue = predictQueue(t.queues, row.model, row.lane);
  await queue.add(jobIdOf(row.id, row.attempt), predictJobOf(row));
  expect((await cancel(id)).json()).toMatchObject({ status: "cancelled", refunded_mils: 245 });
  expect(await queue.find(jobIdOf(row.id, row.attempt))).toBeNull();
  await eventually(
    () => Promise.resolve(signals),
    (all) =>
      ["cancel", "finished"].every((kind) =>
        all.some((one) => one.kind === kind && "rollout_id" in one && one.rollout_id === id),
      ),
  );
  // What its worker still reports changes nothing.
  expect(await settle(t.db, row.id, row.attempt, succeeded())).toMatchObject({ settled: false });
  expect(await balance()).toBe(245n);
});

test("again, and many times at once, is the same: one refund", async () => {
  t.worker.fate = "hang";
  const id = await submit();
  const answers = await Promise.all(Array.from({ length: 20 }, () => cancel(id)));
  answers.push(await cancel(id));
  for (const answer of answers) {
    expect(answer.statusCode).toBe(200);
    expect(answer.json()).toMatchObject({ id, status: "cancelled" });
  }
  expect(await balance()).toBe(245n);
});

test.for([
  ["succeeded", succeeded(), 0n],
  ["failed", failed(), 245n],
  ["expired", { kind: "expired" }, 245n],
] as const)("what is %s is not changed: 409 says so", async ([status, outcome, left]) => {
  t.worker.fate = "hang dispatched";
  const id = await submit();
  const row = await until(id, "dispatched");
  if (!row) throw new Error("no rollout");
  await settle(t.db, row.id, 1, outcome);
  const answer = await cancel(id);
  expect(answer.statusCode).toBe(409);
  expect(answer.json().error).toMatchObject({
    code: "rollout_finished",
    message: `${id} has ended before: it is ${status}`,
  });
  expect(await balance()).toBe(left);
});

test("a race with the end is won by one of them, and the answer says which", async () => {
  for (let n = 0; n < 10; n++) {
    const own = await t.newKey(mils(245));
    t.worker.fate = "hang dispatched";
    const parts = await rolloutParts('{"mode":"async"}');
    const { id } = (await postForm(t.app, "/v1/rollouts", own.api_key, parts)).json();
    const row = await until(id, "dispatched");
    if (!row) throw new Error("no rollout");
    const [answer, end] = await Promise.all([cancel(id, own.api_key), settle(t.db, row.id, 1, succeeded())]);
    expect(answer.statusCode).toBe(end.settled ? 409 : 200);
    expect((await booksOf(t, own.customer_id)).balance).toBe(end.settled ? 0n : 245n);
  }
});

test("whoever waits for it is told, at once", async () => {
  t.worker.fate = "hang";
  const waiting = postForm(t.app, "/v1/predict", key.api_key, await predictParts());
  const id = await eventually(
    async () =>
      (await t.db.query<{ id: string }>(`SELECT id FROM rollouts WHERE customer_id = $1`, [key.customer_id]))[0]?.id,
    (found) => found !== undefined,
  );
  expect((await cancel(String(id))).statusCode).toBe(200);
  const answer = await waiting;
  expect(answer.statusCode).toBe(500);
  expect(answer.json().error).toMatchObject({ code: "rollout_cancelled" });
  expect(answer.json().detail).toContain("refunded $0.0245 of $0.0245");
  expect(await balance()).toBe(245n);
});

test("its Idempotency-Key is free again: the same request runs anew, charged once", async () => {
  t.worker.fate = "hang";
  const header = { "idempotency-key": "again" };
  const first = await submit(header);
  await cancel(first);
  t.worker.fate = "succeed";
  const second = await submit(header);
  expect(second).not.toBe(first);
  await until(second, "succeeded");
  expect(await balance()).toBe(0n);
});

test("whoever waits under its Idempotency-Key does not begin anew what its owner has cancelled", async () => {
  t.worker.fate = "hang";
  const header = { "idempotency-key": "cancelled" };
  const id = await submit(header);
  const waiting = postForm(t.app, "/v1/rollouts", key.api_key, await rolloutParts("{}"), header);
  // Whole requests after it pass through the same steps, so it waits when they are over.
  for (let n = 0; n < 3; n++) expect(await submit(header)).toBe(id);
  await cancel(id);
  expect((await waiting).json().error.code).toBe("rollout_cancelled");
  expect(await t.db.query(`SELECT id FROM rollouts WHERE customer_id = $1`, [key.customer_id])).toEqual([{ id }]);
});

test("is for its owner alone", async () => {
  t.worker.fate = "hang";
  const id = await submit();
  const other = await t.newKey();
  for (const [rollout, apiKey] of [
    [id, other.api_key],
    [`rollout_${"0".repeat(32)}`, key.api_key],
    ["nonsense", key.api_key],
  ] as const) {
    const answer = await cancel(rollout, apiKey);
    expect(answer.statusCode).toBe(404);
    expect(answer.json().error.code).toBe("rollout_not_found");
  }
  expect((await t.app.inject({ method: "POST", url: `/v1/rollouts/${id}/cancel` })).statusCode).toBe(401);
  await until(id, "queued");
});
