/** Pausing, going on, calling off and trying again; and what the money does meanwhile. */
import { randomBytes } from "node:crypto";

import { afterEach, beforeEach, describe, expect, test } from "vitest";

import type { DatasetId } from "#contract/ids.ts";
import { ApiError, type ErrorCode } from "#contract/errors.ts";
import { blobKeys } from "#contract/jobs.ts";
import { mils } from "#contract/mils.ts";
import { cancelByOwner, type Owner, pauseByOwner, resumeByOwner, retryByOwner } from "#datasets/control.ts";
import { createKey, revokeKey } from "#keys/keys.ts";
import type { Database } from "#platform/database.ts";
import { acceptRollout } from "#rollouts/accept.ts";
import { settle } from "#rollouts/settle.ts";

import { assertBooksBalance, failed, grant, newCustomer, newRollout } from "../support/ledger.ts";
import {
  assertAddsUp,
  type OutcomeOf,
  openRunFixture,
  PRICE,
  QUOTAS,
  type RunFixture,
  succeed,
} from "./run-fixture.ts";

let fixture: RunFixture;
let each: number;
beforeEach(async () => {
  fixture = await openRunFixture();
  each = (fixture.numActions + 1) * PRICE;
});
afterEach(async () => {
  await assertBooksBalance(fixture.database.db);
  await fixture.end();
});

const retry = (db: Database, id: DatasetId, owner: Owner) =>
  retryByOwner(db, id, owner, new Date(Date.now() - 86_400_000), QUOTAS);
const gateway = () => fixture.database.as("gateway");

async function codeOf(work: Promise<unknown>): Promise<{ code: ErrorCode; message: string }> {
  const error = await work.then(
    () => {
      throw new Error("expected it to be refused");
    },
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof ApiError)) throw error;
  return { code: error.code, message: error.message };
}

describe("credits", () => {
  test("what can be paid runs, the rest waits, and a top-up makes it go on by itself", async () => {
    const key = await newCustomer(fixture.database.db, mils(10 * each + 7));
    const id = await fixture.add({ rows: 25, key, webhook_url: "https://example.com/hook" });
    await fixture.start();
    fixture.startEngine();
    const paused = await fixture.until(id, ({ state, rows_running }) => state === "paused" && rows_running === 0);
    expect(paused).toMatchObject({ pause_reason: "insufficient_credits", rows_succeeded: 10, rows_pending: 15 });
    expect(paused.message).toContain("goes on by itself");
    expect(await fixture.balance(key)).toBe(7n);
    await assertAddsUp(fixture, id);

    // Too little for a row: nothing moves.
    await grant(fixture.database.db, { customer_id: key.customer_id, amount: mils(each - 8) });
    await new Promise((resolve) => setTimeout(resolve, 2_500));
    expect((await fixture.read(id)).state).toBe("paused");

    await grant(fixture.database.db, { customer_id: key.customer_id, amount: mils(15 * each) });
    const done = await fixture.until(id, ({ state }) => state === "completed", 8_000);
    expect(done).toMatchObject({ rows_succeeded: 25, message: null, pause_reason: null });
    await assertAddsUp(fixture, id);
    const told = await fixture.database.db.query(
      "SELECT event FROM webhook_deliveries WHERE dataset_id = $1 ORDER BY created_at",
      [id],
    );
    expect(told).toEqual([{ event: "dataset.paused" }, { event: "dataset.completed" }]);
  });

  test("a refund elsewhere is enough to go on; money that trickles in does not become a call for each row", async () => {
    const key = await newCustomer(fixture.database.db, mils(each));
    const other = await acceptRollout(
      fixture.database.db,
      newRollout(key, { actions_per_candidate: fixture.numActions }),
    );
    const id = await fixture.add({ rows: 3, key, webhook_url: "https://example.com/hook" });
    await fixture.start();
    fixture.startEngine((rollout, video) => (rollout.dataset_id === null ? null : succeed(rollout, video)));
    await fixture.until(id, ({ state }) => state === "paused");
    await settle(fixture.database.db, other.rollout.id, null, failed());
    const again = await fixture.until(id, ({ state, rows_succeeded }) => state === "paused" && rows_succeeded === 1);
    expect(again).toMatchObject({ pause_reason: "insufficient_credits", rows_pending: 2 });
    const told = await fixture.database.db.query("SELECT event FROM webhook_deliveries WHERE dataset_id = $1", [id]);
    expect(told).toEqual([{ event: "dataset.paused" }]);
  });

  test("a pause that its owner asked for does not end by a top-up", async () => {
    const key = await newCustomer(fixture.database.db, mils(each));
    const id = await fixture.add({ rows: 3, key });
    await fixture.start();
    await fixture.until(id, ({ state }) => state === "paused");
    await pauseByOwner(gateway(), id, key);
    await grant(fixture.database.db, { customer_id: key.customer_id, amount: mils(10 * each) });
    await new Promise((resolve) => setTimeout(resolve, 2_500));
    expect(await fixture.read(id)).toMatchObject({ state: "paused", pause_reason: "requested" });
  });
});

describe("keys", () => {
  test("a revoked key pauses it, and a resume by another key goes on at that key's cost", async () => {
    const id = await fixture.add({ rows: 60 });
    await fixture.start();
    await fixture.until(id, ({ rows_running }) => rows_running === 32);
    await revokeKey(fixture.database.db, fixture.key.key_id);
    await fixture.engine();
    const paused = await fixture.until(id, ({ state, rows_running }) => state === "paused" && rows_running === 0);
    expect(paused).toMatchObject({ pause_reason: "key_unusable", rows_succeeded: 32, rows_pending: 28 });
    expect(paused.message).toContain("has been revoked");

    const other = await createKey(fixture.database.db, { customer: fixture.key.customer_id }, randomBytes);
    await resumeByOwner(gateway(), id, other, undefined);
    fixture.startEngine();
    await fixture.until(id, ({ state }) => state === "completed");
    const keys = await fixture.database.db.query(
      "SELECT key_id, count(*)::int AS count FROM rollouts WHERE dataset_id = $1 GROUP BY 1 ORDER BY 2",
      [id],
    );
    expect(keys).toEqual([
      { key_id: other.key_id, count: 28 },
      { key_id: fixture.key.key_id, count: 32 },
    ]);
    await assertAddsUp(fixture, id);
  });

  test("an expired key says so", async () => {
    const id = await fixture.add({ rows: 1 });
    await fixture.database.db.query("UPDATE api_keys SET expires_at = now() WHERE id = $1", [fixture.key.key_id]);
    await fixture.start();
    const paused = await fixture.until(id, ({ state }) => state === "paused");
    expect(paused.message).toContain("has expired");
  });
});

describe("pause and resume", () => {
  test("while it is paused what runs is finished and noted, and nothing new begins", async () => {
    const id = await fixture.add({ rows: 60 });
    await fixture.start();
    await fixture.until(id, ({ rows_running }) => rows_running === 32);
    expect(await pauseByOwner(gateway(), id, fixture.key)).toMatchObject({
      state: "paused",
      pause_reason: "requested",
    });
    expect(await pauseByOwner(gateway(), id, fixture.key)).toMatchObject({ state: "paused" });
    await fixture.engine();
    await fixture.until(id, ({ rows_running, rows_succeeded }) => rows_running === 0 && rows_succeeded === 32);
    await new Promise((resolve) => setTimeout(resolve, 1_500));
    expect(await fixture.read(id)).toMatchObject({ state: "paused", rows_pending: 28, rows_running: 0 });
    fixture.startEngine();
    expect(await resumeByOwner(gateway(), id, fixture.key, undefined)).toMatchObject({ state: "running" });
    await fixture.until(id, ({ state }) => state === "completed");
    await assertAddsUp(fixture, id);
  });

  test("a ready one begins by a resume", async () => {
    const id = await fixture.add({ rows: 2, state: "ready" });
    await fixture.start();
    fixture.startEngine();
    await new Promise((resolve) => setTimeout(resolve, 1_200));
    expect(await fixture.read(id)).toMatchObject({ state: "ready", rows_pending: 2, started_at: null });
    await resumeByOwner(gateway(), id, fixture.key, undefined);
    expect((await fixture.until(id, ({ state }) => state === "completed")).started_at).not.toBeNull();
  });

  test("a budget that is reached has to be raised", async () => {
    const id = await fixture.add({ rows: 4, budget: mils(2 * each) });
    await fixture.start();
    fixture.startEngine();
    await fixture.until(id, ({ pause_reason }) => pause_reason === "budget_reached");
    const resume = (budget?: number) =>
      resumeByOwner(gateway(), id, fixture.key, budget === undefined ? undefined : mils(budget));
    expect(await codeOf(resume())).toMatchObject({ code: "wrong_state" });
    expect(await codeOf(resume(2 * each))).toMatchObject({ code: "wrong_state" });
    expect(await codeOf(resume(each))).toMatchObject({ code: "invalid_input" });
    expect(await resume(4 * each)).toMatchObject({ budget_mils: BigInt(4 * each) });
    expect(await fixture.until(id, ({ state }) => state === "completed")).toMatchObject({ rows_succeeded: 4 });
  });

  test("each step is refused where it does not belong, naming the state; others see no dataset", async () => {
    const stranger = await newCustomer(fixture.database.db);
    const id = await fixture.add({ rows: 1, state: "ready" });
    for (const step of [pauseByOwner, cancelByOwner, retry]) {
      expect(await codeOf(step(gateway(), id, stranger))).toMatchObject({ code: "dataset_not_found" });
    }
    expect(await codeOf(resumeByOwner(gateway(), id, stranger, undefined))).toMatchObject({
      code: "dataset_not_found",
    });
    for (const step of [pauseByOwner, retry]) {
      const { code, message } = await codeOf(step(gateway(), id, fixture.key));
      expect(code).toBe("wrong_state");
      expect(message).toContain("this one is ready");
    }
    await fixture.start();
    fixture.startEngine();
    await resumeByOwner(gateway(), id, fixture.key, undefined);
    await fixture.until(id, ({ state }) => state === "completed");
    for (const step of [pauseByOwner, cancelByOwner]) {
      expect((await codeOf(step(gateway(), id, fixture.key))).message).toContain("this one is completed");
    }
    const nothing = await codeOf(retry(gateway(), id, fixture.key));
    expect(nothing.message).toContain("nothing to retry");
  });
});

describe("cancel", () => {
  test("what runs is refunded, what waits never runs, what finished stays", async () => {
    const before = await fixture.balance();
    const id = await fixture.add({ rows: 2_500, webhook_url: "https://example.com/hook" });
    await fixture.start();
    await fixture.until(id, ({ rows_running }) => rows_running === 32);
    let finished = 0;
    await fixture.engine((rollout, video) => (finished++ < 4 ? succeed(rollout, video) : null));
    await fixture.until(id, ({ rows_succeeded }) => rows_succeeded === 4);
    expect(await cancelByOwner(gateway(), id, fixture.key)).toMatchObject({ state: "cancelling" });
    const dataset = await fixture.until(id, ({ state }) => state === "cancelled", 25_000);
    expect(dataset).toMatchObject({ rows_succeeded: 4, rows_cancelled: 2_496, rows_pending: 0, held_mils: 0n });
    expect(await fixture.balance()).toBe(before - BigInt(4 * each));
    expect(await cancelByOwner(gateway(), id, fixture.key)).toMatchObject({ state: "cancelled" });
    const results = await fixture.blobs.get(blobKeys.datasetResults(id, "jsonl"));
    expect(results.toString().trim().split("\n")).toHaveLength(2_500);
    const told = await fixture.database.db.query("SELECT event FROM webhook_deliveries WHERE dataset_id = $1", [id]);
    expect(told).toEqual([{ event: "dataset.cancelled" }]);
    await assertAddsUp(fixture, id);
  });

  test("a ready one is cancelled without a charge", async () => {
    const id = await fixture.add({ rows: 3, state: "ready" });
    await fixture.start();
    await cancelByOwner(gateway(), id, fixture.key);
    expect(await fixture.until(id, ({ state }) => state === "cancelled")).toMatchObject({
      rows_cancelled: 3,
      charged_mils: 0n,
    });
  });
});

describe("retry", () => {
  const firstTimeFails: OutcomeOf = (rollout, video) =>
    (rollout.dataset_row ?? 0) % 3 === 0 && !retried.has(rollout.dataset_row)
      ? { kind: "failed", code: "engine_failed", message: "the first time", frames_delivered: 0 }
      : succeed(rollout, video);
  let retried: Set<number | null>;

  test("runs the failed rows again and no other, as another try with another rollout", async () => {
    retried = new Set();
    const id = await fixture.add({ rows: 30 });
    await fixture.start();
    fixture.startEngine(firstTimeFails);
    const first = await fixture.until(id, ({ state }) => state === "completed");
    expect(first).toMatchObject({ rows_succeeded: 20, rows_failed: 10 });
    const before = new Map((await fixture.rows(id)).map((row) => [row.n, row]));
    retried = new Set(Array.from({ length: 31 }, (_, n) => n));

    expect(await retry(gateway(), id, fixture.key)).toMatchObject({ state: "running", finished_at: null });
    const second = await fixture.until(id, ({ state }) => state === "completed");
    expect(second).toMatchObject({ rows_succeeded: 30, rows_failed: 0, charged_mils: BigInt(40 * each) });
    expect(second.refunded_mils).toBe(BigInt(10 * each));
    for (const row of await fixture.rows(id)) {
      const again = row.n % 3 === 0;
      expect(row).toMatchObject({ try: again ? 2 : 1, error_code: null, state: "succeeded" });
      expect(row.rollout_id === before.get(row.n)?.rollout_id).toBe(!again);
    }
    const results = (await fixture.blobs.get(blobKeys.datasetResults(id, "jsonl"))).toString();
    expect(results).not.toContain("engine_failed");
    await assertAddsUp(fixture, id);
  });

  test("takes up what expired and what was cancelled, too", async () => {
    const id = await fixture.add({ rows: 9 });
    let first = true;
    await fixture.start();
    fixture.startEngine((rollout, video) => {
      if (!first) return succeed(rollout, video);
      switch ((rollout.dataset_row ?? 0) % 3) {
        case 0:
          return { kind: "expired" };
        case 1:
          return { kind: "cancelled", frames_delivered: 0 };
        default:
          return { kind: "failed", code: "engine_failed", message: "no", frames_delivered: 0 };
      }
    });
    await fixture.until(id, ({ state }) => state === "completed");
    first = false;
    await retry(gateway(), id, fixture.key);
    expect(await fixture.until(id, ({ state }) => state === "completed")).toMatchObject({ rows_succeeded: 9 });
    await assertAddsUp(fixture, id);
  });

  test("while the others still run, and where the files are gone", async () => {
    retried = new Set();
    const id = await fixture.add({ rows: 6 });
    await fixture.start();
    await fixture.until(id, ({ rows_running }) => rows_running === 6);
    await fixture.engine((rollout, video) => (rollout.dataset_row === 6 ? null : firstTimeFails(rollout, video)));
    await fixture.until(id, ({ rows_failed }) => rows_failed === 1);
    retried = new Set([3]);
    expect(await retry(gateway(), id, fixture.key)).toMatchObject({ state: "running" });
    await fixture.until(id, ({ retry_after, rows_failed }) => retry_after === null && rows_failed === 0);
    fixture.startEngine(firstTimeFails);
    const done = await fixture.until(id, ({ state }) => state === "completed");
    expect(done).toMatchObject({ rows_succeeded: 5, rows_failed: 1 });
    const late = retryByOwner(gateway(), id, fixture.key, new Date(Date.now() + 60_000), QUOTAS);
    expect((await codeOf(late)).message).toContain("not stored any more");
    await fixture.database.db.query("UPDATE datasets SET files_deleted_at = now() WHERE id = $1", [id]);
    expect((await codeOf(retry(gateway(), id, fixture.key))).message).toContain("not stored any more");
  });
});
