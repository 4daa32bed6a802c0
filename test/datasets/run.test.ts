/** Running datasets: rows become rollouts and rollouts become results, and the money is right at the end. */
import { Registry } from "prom-client";
import { afterEach, beforeEach, expect, test } from "vitest";

import { blobKeys } from "#contract/jobs.ts";
import { mils } from "#contract/mils.ts";
import { cancelByOwner, pauseByOwner } from "#datasets/control.ts";
import { rowRolloutId } from "#datasets/rollout-id.ts";
import { createRunnerMetrics, showDatasets } from "#workers/runner/metrics.ts";
import { countOwnBacklog } from "#rollouts/backlog-limits.ts";
import { IN_FLIGHT_MIN } from "#datasets/slice-policy.ts";

import { assertBooksBalance } from "../support/ledger.ts";
import { assertAddsUp, openRunFixture, PRICE, type RunFixture, succeed } from "./run-fixture.ts";

let fixture: RunFixture;
beforeEach(async () => {
  fixture = await openRunFixture();
});
afterEach(async () => {
  await assertBooksBalance(fixture.database.db);
  await fixture.end();
});

test("every row becomes a video, and the charge is delivered frames times the price", async () => {
  const id = await fixture.add({ rows: 100, invalid: 3, webhook_url: "https://example.com/hook" });
  const before = await fixture.balance();
  await fixture.start();
  fixture.startEngine();
  const dataset = await fixture.until(id, ({ state }) => state === "completed");

  const frames = 100 * (fixture.numActions + 1);
  expect(dataset).toMatchObject({
    rows_total: 103,
    rows_invalid: 3,
    rows_succeeded: 100,
    rows_running: 0,
    frames_delivered: BigInt(frames),
    held_mils: 0n,
    charged_mils: BigInt(frames * PRICE),
    refunded_mils: 0n,
  });
  expect(dataset.finished_at).not.toBeNull();
  expect(await fixture.balance()).toBe(before - BigInt(frames * PRICE));
  await assertAddsUp(fixture, id);

  const rows = await fixture.rows(id);
  for (const row of rows.slice(0, 100)) {
    expect(row).toMatchObject({
      state: "succeeded",
      try: 1,
      rollout_id: rowRolloutId(id, row.n, 1),
      frames: fixture.numActions + 1,
      engine_wall_ms: 12.5,
      video_key: `datasets/${id}/videos/ep-${row.n}.mp4`,
    });
    const video = await fixture.blobs.get(blobKeys.datasetVideo(id, `ep-${row.n}`));
    expect(video.toString()).toBe(`the video of ${row.rollout_id}`);
    expect(row.video_bytes).toBe(BigInt(video.length));
  }
  const told = await fixture.database.db.query("SELECT url, event FROM webhook_deliveries WHERE dataset_id = $1", [id]);
  expect(told).toEqual([{ url: "https://example.com/hook", event: "dataset.completed" }]);
});

test("its rollouts go in the bulk lane, with a request id of their own that the ledger names", async () => {
  const id = await fixture.add({ rows: 2 });
  await fixture.start();
  await fixture.until(id, ({ rows_running }) => rows_running === 2);
  const rollouts = await fixture.database.db.query<Record<string, unknown>>(
    `SELECT r.lane, r.route, r.waiter_id, r.dataset_row, r.request_id = d.request_id AND e.reference = r.request_id AS joined
       FROM rollouts r JOIN dataset_rows d ON d.rollout_id = r.id JOIN ledger_entries e ON e.rollout_id = r.id
      WHERE r.dataset_id = $1 ORDER BY r.dataset_row`,
    [id],
  );
  const common = { lane: "bulk", route: "dataset", waiter_id: null, joined: true };
  expect(rollouts).toEqual([
    { ...common, dataset_row: 1 },
    { ...common, dataset_row: 2 },
  ]);
  await fixture.engine();
  await fixture.until(id, ({ state }) => state === "completed");
});

test("money is taken for what is in flight, not for the whole dataset", async () => {
  const id = await fixture.add({ rows: 500 });
  const before = await fixture.balance();
  await fixture.start();
  const dataset = await fixture.until(id, ({ rows_running }) => rows_running >= IN_FLIGHT_MIN);
  expect(dataset.rows_running).toBe(IN_FLIGHT_MIN);
  expect(dataset.held_mils).toBe(BigInt(IN_FLIGHT_MIN * (fixture.numActions + 1) * PRICE));
  // Rounds go by without taking more.
  await new Promise((resolve) => setTimeout(resolve, 1_500));
  expect((await fixture.read(id)).rows_running).toBe(IN_FLIGHT_MIN);
  expect(await fixture.balance()).toBe(before - dataset.held_mils);
  await assertAddsUp(fixture, id);
});

test("rows that fail, expire or are cancelled cost nothing and say why; the others go on", async () => {
  const id = await fixture.add({ rows: 40 });
  const before = await fixture.balance();
  await fixture.start();
  fixture.startEngine((rollout, video) => {
    switch ((rollout.dataset_row ?? 0) % 4) {
      case 1:
        return { kind: "failed", code: "engine_failed", message: "a poison row", frames_delivered: 0 };
      case 2:
        return { kind: "expired" };
      case 3:
        return { kind: "cancelled", frames_delivered: 0 };
      default:
        return succeed(rollout, video);
    }
  });
  const dataset = await fixture.until(id, ({ state }) => state === "completed");
  expect(dataset).toMatchObject({ rows_succeeded: 10, rows_failed: 10, rows_expired: 10, rows_cancelled: 10 });
  expect(await fixture.balance()).toBe(before - BigInt(10 * (fixture.numActions + 1) * PRICE));
  await assertAddsUp(fixture, id);
  const [first, second] = await fixture.rows(id);
  expect(first).toMatchObject({
    state: "failed",
    error_code: "engine_failed",
    error_message: "a poison row",
    frames: 0,
  });
  expect(first?.charged_mils).toBe(first?.refunded_mils);
  expect(second).toMatchObject({ state: "expired", error_code: null });
});

test("a video that cannot be copied keeps back no other row, not even a cancel, and is collected once it can be", async () => {
  const id = await fixture.add({ rows: 300 });
  const copy = fixture.blobs.copy.bind(fixture.blobs);
  let broken = true;
  fixture.blobs.copy = async (from, to) => {
    if (broken && to.endsWith("/ep-2.mp4")) throw new Error("the store refuses this one");
    await copy(from, to);
  };
  await fixture.start();
  fixture.startEngine((rollout, video) => ((rollout.dataset_row ?? 0) <= 250 ? succeed(rollout, video) : null));
  await fixture.until(id, ({ rows_succeeded }) => rows_succeeded === 249, 30_000);
  await cancelByOwner(fixture.database.db, id, fixture.key);
  await fixture.until(id, ({ rows_cancelled, rows_running }) => rows_cancelled === 50 && rows_running === 1, 30_000);
  broken = false;
  const dataset = await fixture.until(id, ({ state }) => state === "cancelled", 30_000);
  expect(dataset).toMatchObject({ rows_succeeded: 250, rows_cancelled: 50 });
  await assertAddsUp(fixture, id);
}, 90_000);

test("the budget is never exceeded, and a refund makes room in it", async () => {
  const each = (fixture.numActions + 1) * PRICE;
  const id = await fixture.add({ rows: 12, budget: mils(5 * each + 1) });
  await fixture.start();
  const full = await fixture.until(id, ({ rows_running }) => rows_running === 5);
  expect(full.state).toBe("running"); // what runs may still be refunded
  let failures = 0;
  await fixture.engine((rollout, video) =>
    failures++ < 2
      ? { kind: "failed", code: "engine_failed", message: "no", frames_delivered: 0 }
      : succeed(rollout, video),
  );
  const again = await fixture.until(id, ({ rows_running, rows_failed }) => rows_failed === 2 && rows_running === 2);
  expect(again.charged_mils - again.refunded_mils + again.held_mils).toBe(BigInt(5 * each));
  await fixture.engine();
  const paused = await fixture.until(id, ({ state }) => state === "paused");
  expect(paused).toMatchObject({ pause_reason: "budget_reached", rows_succeeded: 5, rows_pending: 5, rows_running: 0 });
  expect(paused.message).toContain("resume it with a higher budget");
  await assertAddsUp(fixture, id);
});

test("metrics say what ran, what waits and why", async () => {
  const registry = new Registry();
  const waiting = await fixture.add({ rows: 1, model: "no-such-model" });
  const id = await fixture.add({ rows: 3 });
  const runner = await fixture.start({ registry });
  fixture.startEngine();
  await fixture.until(id, ({ state }) => state === "completed");
  await fixture.until(waiting, ({ state }) => state === "paused");
  await runner.stop();
  const metrics = await registry.metrics();
  expect(metrics).toContain('dream_dataset_rows_total{outcome="succeeded"} 3');
  expect(metrics).toContain("dream_dataset_rows_fed_total 3");
  expect(metrics).toMatch(/dream_dataset_step_seconds_count\{step="finish"\} 1/);
  expect(metrics).toContain(`dream_money_mils_total{kind="debit"} ${3 * (fixture.numActions + 1) * PRICE}`);
  const shown = createRunnerMetrics(new Registry());
  await showDatasets(fixture.database.as("runner"), shown);
  const { values } = await shown.datasets.get();
  expect(values).toEqual([{ labels: { state: "paused", pause_reason: "model_unavailable" }, value: 1 }]);
});

test("a model that is gone pauses the dataset instead of failing its rows", async () => {
  const id = await fixture.add({ rows: 2, model: "no-such-model" });
  await fixture.start();
  const dataset = await fixture.until(id, ({ state }) => state === "paused");
  expect(dataset).toMatchObject({ pause_reason: "model_unavailable", rows_pending: 2 });
  expect(dataset.message).toContain("no-such-model");
});

test("a model that goes while the last rows run holds nothing up, and neither does a pause", async () => {
  const gone = await fixture.add({ rows: 2 });
  const paused = await fixture.add({ rows: 2 });
  const runner = await fixture.start();
  for (const id of [gone, paused]) await fixture.until(id, ({ rows_running }) => rows_running === 2);
  await runner.stop();
  await pauseByOwner(fixture.database.db, paused, fixture.key);
  await fixture.start({ models: [] });
  fixture.startEngine();
  for (const id of [gone, paused]) {
    const dataset = await fixture.until(id, ({ state }) => state === "completed");
    expect(dataset).toMatchObject({ rows_succeeded: 2, pause_reason: null, message: null });
  }
});

test("a paused dataset whose last rows ended before its runner looked again is completed all the same", async () => {
  const id = await fixture.add({ rows: 0, invalid: 1 });
  await pauseByOwner(fixture.database.db, id, fixture.key);
  await fixture.start();
  const dataset = await fixture.until(id, ({ state }) => state === "completed");
  expect(dataset.pause_reason).toBeNull();
});

test("a dataset of bad rows only, and one that is empty, are completed at once", async () => {
  const bad = await fixture.add({ rows: 0, invalid: 2 });
  const empty = await fixture.add({ rows: 0 });
  await fixture.start();
  for (const id of [bad, empty]) await fixture.until(id, ({ state }) => state === "completed");
  const records = await fixture.blobs.get(blobKeys.datasetResults(bad, "jsonl"));
  expect(records.toString().trim().split("\n")).toHaveLength(2);
  expect(await fixture.blobs.get(blobKeys.datasetResults(empty, "jsonl"))).toHaveLength(0);
});

test("rows wait where they are while the backlog is full, for which none fails, and leave half of it to others", async () => {
  const rows = 20;
  const id = await fixture.add({ rows });
  const place = { model: fixture.model.slug, lane: "bulk", customer_id: fixture.key.customer_id } as const;
  const waiting = (): Promise<number> => countOwnBacklog(fixture.database.db, place, rows);
  let mostWaiting = 0;
  await fixture.start({ backlog: { per_customer: 8, all: 1_000 } });
  await fixture.until(id, ({ rows_running }) => rows_running === 4);
  expect(await waiting()).toBe(4);
  fixture.startEngine((rollout, video) => {
    void waiting().then((count) => {
      mostWaiting = Math.max(mostWaiting, count);
    });
    return succeed(rollout, video);
  });
  const dataset = await fixture.until(id, ({ state }) => state === "completed");
  expect(dataset).toMatchObject({ rows_succeeded: rows, rows_failed: 0 });
  expect(mostWaiting).toBeGreaterThan(0);
  expect(mostWaiting).toBeLessThanOrEqual(4);
});
