/**
 * A row that has no video costs nothing, also where its rollout had succeeded: the blob store lost the video before it was
 * collected. Under the runner's own role, against crashes, repetitions and races.
 */
import { pino } from "pino";
import { Registry } from "prom-client";
import { afterEach, beforeEach, expect, test } from "vitest";

import { BlobNotFound } from "#blobs/blob-store.ts";
import type { DatasetId, RolloutId } from "#contract/ids.ts";
import { blobKeys } from "#contract/jobs.ts";
import { mils } from "#contract/mils.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import { settle } from "#rollouts/settle.ts";
import { takeBack } from "#rollouts/take-back.ts";
import { collectFinished, type CollectParts } from "#datasets/collect.ts";
import { cancelByOwner, pauseByOwner, retryByOwner } from "#datasets/control.ts";
import { takeTurn, type Turn } from "#datasets/turn.ts";
import { accountsOf } from "#ledger/ledger.ts";
import { type StatementEntry, statementEntries, statementRanges } from "#ledger/statement.ts";
import { systemClock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";

import { accept, assertBooksBalance, dispatch, newCustomer, owe } from "../support/ledger.ts";
import { silentLog } from "../support/postgres.ts";
import { assertAddsUp, openRunFixture, PRICE, QUOTAS, type RunFixture, succeed } from "./run-fixture.ts";

let fixture: RunFixture;
/** What a row costs. */
let each: bigint;
beforeEach(async () => {
  fixture = await openRunFixture();
  each = BigInt((fixture.numActions + 1) * PRICE);
});
afterEach(async () => {
  await assertBooksBalance(fixture.database.db);
  await fixture.end();
});

const partsOf = (overrides: Partial<CollectParts> = {}): CollectParts => ({
  db: fixture.database.as("runner"),
  blobs: fixture.blobs,
  clock: systemClock,
  log: silentLog,
  ...overrides,
});

/** A turn whose lease is over at once, so that the next one may take it. */
async function take(id: DatasetId, name: string): Promise<Turn> {
  const dataset = await takeTurn(fixture.database.as("runner"), { name, leaseMs: 0, without: [] });
  expect(dataset?.id).toBe(id);
  return { dataset_id: id, name };
}

/** A dataset whose rows all run, and no runner any more. */
async function paidFor(rows: number, spec: Partial<Parameters<RunFixture["add"]>[0]> = {}): Promise<DatasetId> {
  const id = await fixture.add({ rows, ...spec });
  const runner = await fixture.start();
  await fixture.until(id, ({ rows_running }) => rows_running === rows);
  await runner.stop();
  await fixture.database.db.query("UPDATE datasets SET runner_until = NULL");
  return id;
}

const videoOf = (id: RolloutId): string => blobKeys.video(id, 1, "run", 0);

async function lose(id: DatasetId, ...rows: readonly number[]): Promise<void> {
  for (const { rollout_id } of (await fixture.rows(id)).filter(({ n }) => rows.includes(n))) {
    if (rollout_id) await fixture.blobs.delete(videoOf(rollout_id));
  }
}

const refundsOf = (id: DatasetId) =>
  fixture.database.db.query<{ row: number; amount_mils: bigint; detail: string }>(
    `SELECT r.dataset_row AS row, e.amount_mils, e.detail FROM ledger_entries e JOIN rollouts r ON r.id = e.rollout_id
      WHERE r.dataset_id = $1 AND e.kind = 'refund' ORDER BY e.seq`,
    [id],
  );

test("the row fails with a reason, its money is back to the mil, and the statement says why", async () => {
  const before = await fixture.balance();
  const id = await paidFor(3);
  await fixture.engine();
  await lose(id, 2);
  const registry = new Registry();
  const runner = await fixture.start({ registry });
  const dataset = await fixture.until(id, ({ state }) => state === "completed");
  await runner.stop();

  expect(await fixture.balance()).toBe(before - 2n * each);
  const counters = { charged_mils: 3n * each, refunded_mils: each, held_mils: 0n, frames_delivered: (2n * each) / 5n };
  expect(dataset).toMatchObject({ rows_succeeded: 2, rows_failed: 1, ...counters });
  await assertAddsUp(fixture, id);
  const [, row] = await fixture.rows(id);
  expect(row).toMatchObject({
    state: "failed",
    error_code: "video_lost",
    error_message: expect.stringContaining("a retry makes it anew"),
    frames: 0,
    charged_mils: each,
    refunded_mils: each,
    engine_wall_ms: 12.5,
    video_key: null,
  });
  const [rollout] = await fixture.database.db.query<Rollout>("SELECT * FROM rollouts WHERE id = $1", [row?.rollout_id]);
  expect(rollout).toMatchObject({ status: "failed", error_code: "video_lost", result: null, refunded_mils: each });

  const [balance] = await statementRanges(
    fixture.database.as("gateway"),
    fixture.key.customer_id,
    new Date(0),
    new Date(Date.now() + 1_000),
  );
  if (!balance) throw new Error("a balance has a statement");
  const entries: StatementEntry[] = [];
  for await (const entry of statementEntries(fixture.database.as("gateway"), fixture.key.customer_id, balance)) {
    entries.push(entry);
  }
  expect(entries.filter(({ kind }) => kind === "refund")).toMatchObject([
    {
      amount_mils: each,
      rollout_id: row?.rollout_id,
      reference: row?.request_id,
      detail: `refund · pusht-small · ${fixture.numActions + 1} frames · video lost`,
    },
  ]);
  const metrics = await registry.metrics();
  expect(metrics).toContain("dream_dataset_videos_lost_total 1");
  expect(metrics).toContain(`dream_money_mils_total{kind="refund"} ${each}`);
});

test("however often it is collected, and whoever dies before its commit, it is refunded once", async () => {
  const before = await fixture.balance();
  const id = await paidFor(5);
  await fixture.engine();
  await lose(id, 1, 3, 4);
  const turn = await take(id, "turn_one");
  const paid = await fixture.read(id);

  // The process dies when all is written and nothing committed.
  const { db } = partsOf();
  const dying: Database = {
    ...db,
    transaction: (run) =>
      db.transaction(async (tx) => {
        await run(tx);
        throw new Error("died");
      }),
  };
  await expect(collectFinished(turn, partsOf({ db: dying }), new Map())).rejects.toThrow("died");
  expect(await fixture.read(id)).toEqual(paid);
  expect(await refundsOf(id)).toEqual([]);
  await assertAddsUp(fixture, id);

  const collected = await collectFinished(turn, partsOf(), new Map());
  expect(collected).toMatchObject({ videosLost: 3, states: { length: 5 }, takenBack: { length: 3 } });
  // It died right after its commit: the next one finds nothing, also if it had looked before.
  expect(await collectFinished(turn, partsOf(), new Map())).toEqual({ videosLost: 0, states: [], takenBack: [] });
  const ids = (await fixture.rows(id)).map(({ rollout_id }) => rollout_id).filter((one) => one !== null);
  expect(await db.transaction((tx) => takeBack(tx, ids.slice(0, 1), "again"))).toEqual([]);
  expect((await refundsOf(id)).map(({ row, amount_mils }) => ({ row, amount_mils }))).toEqual([
    { row: 1, amount_mils: each },
    { row: 3, amount_mils: each },
    { row: 4, amount_mils: each },
  ]);
  expect(await fixture.balance()).toBe(before - 2n * each);
  await assertAddsUp(fixture, id);

  // A late word of its worker changes nothing any more.
  const [first] = ids;
  if (!first) throw new Error("it has rows");
  const late = { kind: "failed", code: "lost", message: "late", frames_delivered: 0 } as const;
  expect(await settle(fixture.database.as("settlement"), first, null, late)).toMatchObject({ settled: false });
});

test("collected at once by several, of one turn and of an old one, beside other refunds of the customer", async () => {
  const before = await fixture.balance();
  const id = await paidFor(30);
  const others: RolloutId[] = [];
  for (let i = 0; i < 20; i++) others.push((await accept(fixture.database.db, fixture.key)).id);
  await fixture.engine((rollout, video) => (rollout.dataset_id === null ? null : succeed(rollout, video)));
  await lose(id, ...Array.from({ length: 15 }, (_, i) => 2 * i + 1));
  const old = await take(id, "turn_old");
  const turn = await take(id, "turn_new");
  const [collected] = await Promise.all([
    Promise.all([old, turn, turn, turn].map((one) => collectFinished(one, partsOf(), new Map()))),
    ...others.map((one) => settle(fixture.database.as("settlement"), one, null, { kind: "expired" })),
  ]);
  expect(collected[0]).toBeNull();
  expect(collected.map((one) => one?.states.length ?? 0).toSorted((a, b) => b - a)).toEqual([30, 0, 0, 0]);
  expect(collected.reduce((sum, one) => sum + (one?.takenBack.length ?? 0), 0)).toBe(15);
  expect(await refundsOf(id)).toHaveLength(15);
  expect(await fixture.balance()).toBe(before - 15n * each);
  await assertAddsUp(fixture, id);
});

test("a retry of the row charges anew, once, and the first try stays refunded", async () => {
  const before = await fixture.balance();
  const id = await paidFor(2);
  await fixture.engine();
  await lose(id, 1);
  await fixture.start();
  await fixture.until(id, ({ state }) => state === "completed");
  expect(await fixture.balance()).toBe(before - each);

  await retryByOwner(fixture.database.as("gateway"), id, fixture.key, new Date(0), QUOTAS);
  fixture.startEngine();
  const dataset = await fixture.until(id, ({ state }) => state === "completed");
  expect(dataset).toMatchObject({ rows_succeeded: 2, charged_mils: 3n * each, refunded_mils: each });
  expect((await fixture.rows(id))[0]).toMatchObject({
    state: "succeeded",
    try: 2,
    charged_mils: 2n * each,
    refunded_mils: each,
    error_code: null,
  });
  expect(await fixture.balance()).toBe(before - 2n * each);
  await assertAddsUp(fixture, id);
});

test("what a process that died had copied is no lost video, and stays paid", async () => {
  const before = await fixture.balance();
  const id = await paidFor(1);
  await fixture.engine();
  const [row] = await fixture.rows(id);
  if (!row?.rollout_id) throw new Error("it runs");
  await fixture.blobs.copy(videoOf(row.rollout_id), blobKeys.datasetVideo(id, "ep-1"));
  await lose(id, 1);
  const turn = await take(id, "turn_one");
  expect(await collectFinished(turn, partsOf(), new Map())).toMatchObject({ states: ["succeeded"], videosLost: 0 });
  expect((await fixture.rows(id))[0]).toMatchObject({ state: "succeeded", error_code: null });
  expect((await fixture.rows(id))[0]?.video_bytes).toBeGreaterThan(0n);
  expect(await fixture.balance()).toBe(before - each);
  await assertAddsUp(fixture, id);
});

const nothingThere = (from: string): Promise<never> => Promise.reject(new BlobNotFound(from));

test("a row that was noted with its video keeps it, and its charge, though another collector had missed the video", async () => {
  const before = await fixture.balance();
  const id = await paidFor(2);
  await fixture.engine();
  const turn = await take(id, "turn_one");
  let noted: Promise<unknown> | undefined;
  const info = async () => {
    await (noted ??= collectFinished(turn, partsOf(), new Map()));
    return null;
  };
  const blind = partsOf({ blobs: { ...fixture.blobs, copy: nothingThere, info } });
  expect(await collectFinished(turn, blind, new Map())).toEqual({ states: [], videosLost: 0, takenBack: [] });
  expect(await noted).toMatchObject({ states: ["succeeded", "succeeded"] });
  expect(await fixture.read(id)).toMatchObject({ rows_succeeded: 2, refunded_mils: 0n });
  expect(await fixture.balance()).toBe(before - 2n * each);
  await assertAddsUp(fixture, id);
});

test("a store that is away loses nothing: the row waits", async () => {
  const id = await paidFor(1);
  await fixture.engine();
  await lose(id, 1);
  const blobs = { ...fixture.blobs, info: () => Promise.reject(new Error("the store is away")) };
  const stuck = new Map<number, unknown>();
  const turn = await take(id, "turn_one");
  expect(await collectFinished(turn, partsOf({ blobs }), stuck)).toMatchObject({ states: [] });
  expect([...stuck.keys()]).toEqual([1]);
  expect(await fixture.read(id)).toMatchObject({ rows_running: 1, held_mils: each });
  expect(await refundsOf(id)).toEqual([]);
});

test("a result that names no video is refunded, too", async () => {
  const before = await fixture.balance();
  const id = await paidFor(1);
  await fixture.engine();
  await fixture.database.db.query(`UPDATE rollouts SET result = jsonb_set(result, '{video_keys}', '[]')`);
  const turn = await take(id, "turn_one");
  expect(await collectFinished(turn, partsOf(), new Map())).toMatchObject({ states: ["failed"], videosLost: 1 });
  expect(await fixture.balance()).toBe(before);
  await assertAddsUp(fixture, id);
});

test("all videos of a paused and of a cancelled dataset, with every mil back", async () => {
  const before = await fixture.balance();
  const [paused, cancelled] = [await paidFor(6), await paidFor(6)];
  await fixture.engine();
  for (const id of [paused, cancelled]) await lose(id, 1, 2, 3, 4, 5, 6);
  await pauseByOwner(fixture.database.db, paused, fixture.key);
  await cancelByOwner(fixture.database.db, cancelled, fixture.key);
  await fixture.start();
  await fixture.until(paused, ({ state }) => state === "completed");
  await fixture.until(cancelled, ({ state }) => state === "cancelled");
  expect(await fixture.balance()).toBe(before);
  for (const id of [paused, cancelled]) {
    expect(await fixture.read(id)).toMatchObject({ rows_failed: 6, refunded_mils: 6n * each });
    await assertAddsUp(fixture, id);
  }
});

test("a customer in debt pays it with what comes back", async () => {
  const { db } = fixture.database;
  const key = await newCustomer(db, mils(4n * each));
  const id = await paidFor(4, { key });
  await owe(db, key.customer_id, 1);
  await fixture.engine();
  await lose(id, 1, 2, 4);
  const turn = await take(id, "turn_one");
  expect(await collectFinished(turn, partsOf(), new Map())).toMatchObject({ videosLost: 3 });
  expect(await accountsOf(db, key.customer_id)).toEqual({ balance_mils: 3n * each - 100n, debt_mils: 0n });
  await assertAddsUp(fixture, id);
});

test("where frames cost nothing there is nothing to refund, and the row fails all the same", async () => {
  const { db } = fixture.database;
  const key = await newCustomer(db);
  await db.query(
    `INSERT INTO prices (customer_id, mils_per_frame, effective_from, note) VALUES ($1, 0, now() - interval '1 day', 'a test')`,
    [key.customer_id],
  );
  const id = await paidFor(1, { key });
  await fixture.engine();
  await lose(id, 1);
  const turn = await take(id, "turn_one");
  expect(await collectFinished(turn, partsOf(), new Map())).toMatchObject({ states: ["failed"], videosLost: 1 });
  expect(await refundsOf(id)).toEqual([]);
  expect((await fixture.rows(id))[0]).toMatchObject({ error_code: "video_lost", frames: 0 });
  await assertAddsUp(fixture, id);
});

test("one that was refunded missing frames before ends its row, keeps its one refund, and an operator is told", async () => {
  const before = await fixture.balance();
  const id = await paidFor(2);
  await fixture.engine((rollout, video) => {
    const outcome = succeed(rollout, video);
    if (rollout.dataset_row === 2 || outcome?.kind !== "succeeded") return outcome;
    return { ...outcome, result: { ...outcome.result, frames: rollout.frames - 2 } };
  });
  await lose(id, 1, 2);
  const lines: Record<string, unknown>[] = [];
  const log = pino({ level: "error" }, { write: (line: string) => void lines.push(JSON.parse(line)) });
  const turn = await take(id, "turn_one");
  const collected = await collectFinished(turn, partsOf({ log }), new Map());
  expect(collected).toMatchObject({ states: ["failed", "failed"], videosLost: 2, takenBack: { length: 1 } });
  const [short] = await fixture.rows(id);
  expect(short).toMatchObject({ state: "failed", error_code: "video_lost", refunded_mils: 10n, charged_mils: each });
  const told = lines.filter(({ msg }) => String(msg).includes("given back by hand"));
  expect(told).toMatchObject([{ rollouts: [short?.rollout_id] }]);
  expect(await refundsOf(id)).toMatchObject([
    { row: 1, amount_mils: 10n },
    { row: 2, amount_mils: each },
  ]);
  expect(await fixture.balance()).toBe(before - each + 10n);
  await assertAddsUp(fixture, id);
});

test("what is no dataset's, or has not succeeded, is not taken back", async () => {
  const { db } = fixture.database;
  const waits = await accept(db, fixture.key);
  const done = await accept(db, fixture.key);
  await dispatch(db, done.id);
  await settle(db, done.id, null, succeed(done, videoOf(done.id)) ?? { kind: "expired" });
  const id = await paidFor(1);
  const [row] = await fixture.rows(id);
  if (!row?.rollout_id) throw new Error("it runs");
  const balance = await fixture.balance();
  const ids = [waits.id, done.id, row.rollout_id];
  expect(await partsOf().db.transaction((tx) => takeBack(tx, ids, "no"))).toEqual([]);
  expect(await fixture.balance()).toBe(balance);
});
