/** Full backlogs are refused before anything is paid; whoever waits is told when a worker may begin. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";

import type { RolloutId } from "#contract/ids.ts";
import { mils } from "#contract/mils.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { type Pool, writePool } from "#pools/pool.ts";
import { settle } from "#rollouts/settle.ts";
import { accept, assertBooksBalance, cancelled, dispatch } from "#test/support/ledger.ts";
import { poolRow } from "#test/support/pools.ts";

import { booksOf } from "./support/books.ts";
import { ARM, PUSHER } from "./support/models.ts";
import { actionsFile } from "./support/npy-writer.ts";
import { getWithKey, postForm, predictParts, rolloutParts } from "./support/requests.ts";
import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

const LIMITS = { BACKLOG_MAX_PER_CUSTOMER: 3, BACKLOG_MAX: 5 };

/** Counts and outlooks are kept for a second or a few: each test begins when they are out of date. */
const OUT_OF_DATE_MS = 60_000;
let aheadMs = 0;
const clock = { now: () => Date.now() + aheadMs };

let t: TestGateway;
let key: CreatedKey;
let other: CreatedKey;
beforeAll(async () => {
  t = await startTestGateway({ config: { ...LIMITS, DEFAULT_MODEL: PUSHER.slug }, clock });
});
afterAll(async () => {
  await assertBooksBalance(t.db);
  await t.stop();
});
beforeEach(async () => {
  aheadMs += OUT_OF_DATE_MS;
  [key, other] = [await t.newKey(mils(100_000)), await t.newKey(mils(100_000))];
  t.worker.fate = "hang";
  await t.db.query("DELETE FROM pools");
});
afterEach(async () => {
  t.worker.fate = "succeed";
  await t.worker.finishHanging();
  const left = await t.db.query<{ id: RolloutId }>("SELECT id FROM rollouts WHERE finished_at IS NULL");
  for (const { id } of left) await settle(t.db, id, null, cancelled);
});

const submit = async (who = key, headers: Record<string, string> = {}) =>
  postForm(t.app, "/v1/rollouts", who.api_key, await rolloutParts(JSON.stringify({ mode: "async" })), headers);

/** Workers as the leading scheduler sees them: one that holds one sample, and needs five seconds of it. */
const showPool = async (overrides: Partial<Pool> = {}): Promise<boolean> =>
  writePool(
    t.db,
    0n,
    poolRow({
      model: PUSHER.slug,
      desired: 1,
      reason: { kind: "busy", workers: 1 },
      ready: 1,
      samples_per_worker: 1,
      seconds_per_sample: 5,
      maximum: 1,
      looked_at: new Date(clock.now()),
      ...overrides,
    }),
  );

/** Rollouts of another customer that workers have. */
async function dispatchSome(count: number): Promise<void> {
  for (let n = 0; n < count; n++) {
    const { id } = await accept(t.db, other, { model: PUSHER.slug, lane: "bulk" });
    await dispatch(t.db, id);
  }
}

describe("a full backlog", () => {
  test("of a customer is answered 429 with when it has room, for nothing, and others are not concerned", async () => {
    const answers = [await submit(), await submit(), await submit()];
    expect(answers.map(({ statusCode }) => statusCode)).toEqual([202, 202, 202]);
    const before = await booksOf(t, key.customer_id);
    const full = await submit();
    expect(full.statusCode).toBe(429);
    expect(full.json().error.code).toBe("too_many_waiting");
    expect(full.json().detail).toContain("at most 3 of your rollouts waiting in the bulk lane of pusher");
    expect(Number(full.headers["retry-after"])).toBeGreaterThanOrEqual(1);
    expect(await booksOf(t, key.customer_id)).toEqual(before);

    expect((await submit(other)).statusCode).toBe(202);
    const { chunk_size, action_dim } = ARM.shapes;
    const arm = (await rolloutParts('{"mode":"async"}')).map((part) =>
      part.name === "actions" ? { ...part, body: actionsFile(chunk_size, action_dim) } : part,
    );
    expect((await postForm(t.app, `/m/${ARM.slug}/v1/rollouts`, key.api_key, arm)).statusCode).toBe(202);
    // What somebody waits for is in the other lane.
    t.worker.fate = "succeed";
    expect((await postForm(t.app, "/v1/predict", key.api_key, await predictParts())).statusCode).toBe(200);
  });

  test("is counted anew after a clock was set back", async () => {
    for (let n = 0; n < 3; n++) await submit();
    expect((await submit()).statusCode).toBe(429);
    const ids = await t.db.query<{ id: RolloutId }>("SELECT id FROM rollouts WHERE finished_at IS NULL");
    for (const { id } of ids) await settle(t.db, id, null, cancelled);
    aheadMs -= 30_000;
    expect((await submit()).statusCode).toBe(202);
    aheadMs += 30_000;
  });

  test("of all is answered 503, to whoever comes next", async () => {
    for (let n = 0; n < LIMITS.BACKLOG_MAX; n++) expect((await submit(n < 3 ? key : other)).statusCode).toBe(202);
    const third = await t.newKey(mils(1_000));
    const before = await booksOf(t, third.customer_id);
    const full = await submit(third);
    expect(full.statusCode).toBe(503);
    expect(full.json().error.code).toBe("no_capacity");
    expect(Number(full.headers["retry-after"])).toBeGreaterThanOrEqual(1);
    expect(await booksOf(t, third.customer_id)).toEqual(before);
  });

  test("has room again when some of it has gone", async () => {
    for (let n = 0; n < LIMITS.BACKLOG_MAX_PER_CUSTOMER; n++) await submit();
    expect((await submit()).statusCode).toBe(429);
    await t.worker.finishHanging();
    aheadMs += OUT_OF_DATE_MS;
    expect((await submit()).statusCode).toBe(202);
  });

  test("tells a repetition under its key what became of it", async () => {
    const header = { "idempotency-key": "paid-before" };
    const first = await submit(key, header);
    for (let n = 1; n < LIMITS.BACKLOG_MAX_PER_CUSTOMER; n++) await submit();
    expect((await submit(key, { "idempotency-key": "new" })).statusCode).toBe(429);
    const again = await submit(key, header);
    expect(again.statusCode).toBe(202);
    expect(again.json().id).toBe(first.json().id);
  });

  test("lets no more in than it may of what comes at once", async () => {
    const answers = await Promise.all(Array.from({ length: 12 }, () => submit()));
    const codes = answers.map(({ statusCode }) => statusCode).toSorted((a, b) => a - b);
    expect(codes).toEqual([...Array(LIMITS.BACKLOG_MAX_PER_CUSTOMER).fill(202), ...Array(9).fill(429)]);
  });
});

describe("when it begins", () => {
  test("is told with its place, and so is when a full backlog has room", async () => {
    await dispatchSome(2);
    await showPool();
    const first = await submit();
    // Two are before it, of which one is at the only worker: both have to be done.
    expect(first.json()).toMatchObject({ status: "queued", queue_position: 1, expected_start_s: 10 });
    const second = await submit();
    expect(second.json()).toMatchObject({ queue_position: 2, expected_start_s: 15 });
    await submit();
    const full = await submit();
    expect(full.statusCode).toBe(429);
    expect(full.headers["retry-after"]).toBe("10");
    const shown = await getWithKey(t.app, `/v1/rollouts/${second.json().id}`, key.api_key);
    expect(shown.json()).toMatchObject({ queue_position: 2, expected_start_s: 15 });
    expect(Number(shown.headers["retry-after"])).toBeGreaterThanOrEqual(15);
  });

  test("is after a cold start where no worker is ready", async () => {
    await showPool({ ready: 0, desired: 0, reason: { kind: "no_work" } });
    const answer = await submit();
    expect(answer.json()).toMatchObject({ queue_position: 1 });
    expect(answer.json().expected_start_s).toBeGreaterThanOrEqual(70);
  });

  test("is null where nobody knows, and once it has ended", async () => {
    await showPool({ crash_loop: "exited with 134" });
    const answer = await submit();
    expect(answer.json()).toMatchObject({ queue_position: 1, expected_start_s: null });
    await t.worker.finishHanging();
    const done = await getWithKey(t.app, `/v1/rollouts/${answer.json().id}`, key.api_key);
    expect(done.json()).toMatchObject({ status: "succeeded", queue_position: null, expected_start_s: null });
  });
});
