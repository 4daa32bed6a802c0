/** Who may work on a dataset, whatever freezes, dies or runs beside each other: money and counters stay right. */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { randomBytes } from "node:crypto";

import { afterEach, beforeEach, expect, test } from "vitest";

import { createKey, revokeKey } from "#keys/keys.ts";
import { collectFinished } from "#datasets/collect.ts";
import { callOffSome } from "#datasets/call-off.ts";
import { pauseByOwner, resumeByOwner } from "#datasets/control.ts";
import { feedSlice, nextSlice } from "#datasets/feed.ts";
import { finishDataset } from "#datasets/finish.ts";
import { prepareRows } from "#datasets/prepare.ts";
import { rowRolloutId } from "#datasets/rollout-id.ts";
import { endTurn, renewTurn, takeTurn, type Turn } from "#datasets/turn.ts";
import { bundleIdentity } from "#inputs/fingerprint.ts";
import { createFrameNormaliser } from "#inputs/frame.ts";
import type { DatasetId } from "#contract/ids.ts";
import { systemClock } from "#platform/clock.ts";
import { createOutbound } from "#platform/outbound.ts";
import { createSlots } from "#platform/slots.ts";

import { accept, assertBooksBalance, newCustomer } from "../support/ledger.ts";
import { silentLog } from "../support/postgres.ts";
import { seededRandom } from "../chaos/random.ts";
import { assertAddsUp, BACKLOG, openRunFixture, PRICE, type RunFixture, succeed } from "./run-fixture.ts";

let fixture: RunFixture;
beforeEach(async () => {
  fixture = await openRunFixture();
});
afterEach(async () => {
  await assertBooksBalance(fixture.database.db);
  await fixture.end();
});

const never = new AbortController().signal;

/** A turn whose lease is over as soon as it is taken, as that of a runner that froze right then. */
async function takeAndFreeze(id: DatasetId, name: string): Promise<Turn> {
  const dataset = await takeTurn(fixture.database.as("runner"), { name, leaseMs: 0, without: [] });
  expect(dataset?.id).toBe(id);
  return { dataset_id: id, name };
}

function partsOf() {
  const db = fixture.database.as("runner");
  return {
    db,
    blobs: fixture.blobs,
    workDir: fixture.folder,
    outbound: createOutbound({ allowPrivate: true }),
    retryDelaysMs: [],
    large: createSlots(1),
    normaliseFrame: createFrameNormaliser(),
    clock: systemClock,
    random: randomBytes,
    log: silentLog,
    queues: fixture.queues,
    refunded: () => undefined,
  };
}

async function prepared(id: DatasetId) {
  const dataset = await fixture.read(id);
  const rows = await nextSlice(partsOf().db, dataset, BACKLOG, Date.now());
  const model = { manifest: fixture.model, identity: bundleIdentity(fixture.model) };
  return await prepareRows(dataset, rows, model, partsOf(), never);
}

test("a runner that froze with a slice in its hands pays for nothing when it wakes up", async () => {
  const id = await fixture.add({ rows: 10 });
  const { db } = partsOf();
  const frozen = await takeAndFreeze(id, "turn_frozen");
  const slice = await prepared(id);
  const current = await takeAndFreeze(id, "turn_current");
  expect((await feedSlice(db, current, slice))?.accepted).toHaveLength(10);
  const after = await fixture.read(id);
  const balance = await fixture.balance();

  expect(await feedSlice(db, frozen, slice)).toBeNull();
  expect(await renewTurn(db, frozen, 60_000)).toBe(false);
  expect(await callOffSome(frozen, partsOf(), never)).toBeNull();
  await endTurn(db, frozen, 60_000);
  expect(await renewTurn(db, current, 0)).toBe(true);
  expect(await fixture.read(id)).toEqual(after);
  expect(await fixture.balance()).toBe(balance);
  // Also the same slice once more in the turn that has it: those rows run already.
  expect(await feedSlice(db, current, slice)).toEqual({ accepted: [], failed: 0, pause: null });
  expect(await fixture.read(id)).toEqual(after);
  expect(await fixture.balance()).toBe(balance);
  await assertAddsUp(fixture, id);
});

test("a slice that was prepared before its dataset was resumed with another key is paid by that key", async () => {
  const { db } = fixture.database;
  const id = await fixture.add({ rows: 3 });
  const turn = await takeAndFreeze(id, "turn_resumed");
  const slice = await prepared(id);
  const owner = fixture.key;
  const other = await createKey(db, { customer: owner.customer_id }, randomBytes);
  await pauseByOwner(db, id, owner);
  await revokeKey(db, owner.key_id);
  await resumeByOwner(db, id, other, undefined);
  expect(await feedSlice(partsOf().db, turn, slice)).toMatchObject({ accepted: { length: 3 }, failed: 0, pause: null });
  const payers = await db.query("SELECT DISTINCT key_id FROM rollouts WHERE dataset_id = $1", [id]);
  expect(payers).toEqual([{ key_id: other.key_id }]);
  await assertAddsUp(fixture, id);
});

test("a runner that froze while it collected notes nothing a second time", async () => {
  const id = await fixture.add({ rows: 6 });
  const { db } = partsOf();
  const first = await takeAndFreeze(id, "turn_first");
  await feedSlice(db, first, await prepared(id));
  await fixture.engine();
  const second = await takeAndFreeze(id, "turn_second");
  expect(await collectFinished(first, partsOf(), new Map())).toBeNull();
  expect((await collectFinished(second, partsOf(), new Map()))?.states).toHaveLength(6);
  expect((await collectFinished(second, partsOf(), new Map()))?.states).toEqual([]);
  await assertAddsUp(fixture, id);
  expect(await finishDataset(first, partsOf(), never)).toBe(false);
  expect(await fixture.read(id)).toMatchObject({ state: "running" });
  expect(await finishDataset(second, partsOf(), never)).toBe(true);
  expect(await fixture.read(id)).toMatchObject({ state: "completed", rows_succeeded: 6 });
});

test("two collections of one turn at once note each row once", async () => {
  const id = await fixture.add({ rows: 20 });
  const turn = await takeAndFreeze(id, "turn_twice");
  await feedSlice(partsOf().db, turn, await prepared(id));
  await fixture.engine();
  const both = await Promise.all([
    collectFinished(turn, partsOf(), new Map()),
    collectFinished(turn, partsOf(), new Map()),
  ]);
  expect(both.map((collected) => collected?.states.length).toSorted((a = 0, b = 0) => b - a)).toEqual([20, 0]);
  await assertAddsUp(fixture, id);
});

test("a row that spoils its slice fails alone, at no charge", async () => {
  const id = await fixture.add({ rows: 20 });
  // Somebody else has the id of one row's rollout: the primary key refuses it.
  const other = await newCustomer(fixture.database.db);
  await accept(fixture.database.db, other, { id: rowRolloutId(id, 7, 1) });
  const before = await fixture.balance();
  const turn = await takeAndFreeze(id, "turn_spoilt");
  const fed = await feedSlice(partsOf().db, turn, await prepared(id));
  expect(fed).toMatchObject({ failed: 1, pause: null });
  expect(fed?.accepted).toHaveLength(19);
  expect((await fixture.rows(id))[6]).toMatchObject({ state: "failed", error_code: "internal", charged_mils: 0n });
  expect(await fixture.balance()).toBe(before - BigInt(19 * (fixture.numActions + 1) * PRICE));
});

test("three runners on the same datasets charge each row once", async () => {
  const ids = [];
  for (let i = 0; i < 5; i++) ids.push(await fixture.add({ rows: 60 }));
  for (let i = 0; i < 3; i++) await fixture.start();
  fixture.startEngine();
  for (const id of ids) {
    expect(await fixture.until(id, ({ state }) => state === "completed", 60_000)).toMatchObject({ rows_succeeded: 60 });
    await assertAddsUp(fixture, id);
  }
  const [row] = await fixture.database.db.query<{ rollouts: number }>("SELECT count(*)::int AS rollouts FROM rollouts");
  expect(row?.rollouts).toBe(300);
}, 120_000);

test("a small dataset that comes later does not wait for a large one of somebody else's", async () => {
  const large = await fixture.add({ rows: 900 });
  await fixture.start();
  await fixture.until(large, ({ rows_running }) => rows_running > 0);
  const small = await fixture.add({ rows: 20, key: await newCustomer(fixture.database.db) });
  let room = 0;
  // Some fifty rollouts a second, the oldest first.
  const pace = setInterval(() => (room = 10), 200);
  fixture.startEngine((rollout, video) => (room-- > 0 ? succeed(rollout, video) : null));
  await fixture.until(small, ({ state }) => state === "completed", 15_000);
  clearInterval(pace);
  expect((await fixture.read(large)).rows_pending).toBeGreaterThan(300);
});

test("runners that are killed at any moment leave every row in one state, and each is charged once", async () => {
  const random = seededRandom(Number(process.env["RUN_SEED"] ?? 5));
  const id = await fixture.add({ rows: 400 });
  const before = await fixture.balance();
  fixture.startEngine((rollout, video) =>
    (rollout.dataset_row ?? 0) % 10 === 0
      ? { kind: "failed", code: "engine_failed", message: "a poison row", frames_delivered: 0 }
      : succeed(rollout, video),
  );
  let kills = 0;
  for (; kills < 4; kills++) {
    const child = startRunnerProcess();
    await once(child, "message"); // it runs
    await new Promise((resolve) => setTimeout(resolve, random.integer(50, 550)));
    child.kill("SIGKILL");
    await once(child, "exit");
    await assertAddsUp(fixture, id);
    if ((await fixture.read(id)).state === "completed") break;
  }
  await fixture.start();
  const dataset = await fixture.until(id, ({ state }) => state === "completed", 90_000);
  expect(dataset).toMatchObject({ rows_succeeded: 360, rows_failed: 40, rows_total: 400 });
  expect(dataset.charged_mils - dataset.refunded_mils).toBe(BigInt(360 * (fixture.numActions + 1) * PRICE));
  expect(await fixture.balance()).toBe(before - BigInt(360 * (fixture.numActions + 1) * PRICE));
  const [row] = await fixture.database.db.query<{ rollouts: number }>("SELECT count(*)::int AS rollouts FROM rollouts");
  expect(row?.rollouts).toBe(400);
  await assertAddsUp(fixture, id);
  const keys = (await fixture.rows(id)).flatMap(({ video_key }) => video_key ?? []);
  expect(keys).toHaveLength(360);
  for (const key of keys) expect((await fixture.blobs.get(key)).toString(), key).toContain("the video of");
}, 180_000);

function startRunnerProcess(): ChildProcess {
  return fork(fileURLToPath(new URL("runner-process.ts", import.meta.url)), {
    env: {
      ...process.env,
      RUNNER_URL: fixture.database.urlAs("runner"),
      QUEUE_URL: fixture.database.url,
      BLOBS: `${fixture.folder}/blobs`,
    },
    execArgv: [],
    stdio: ["ignore", "inherit", "inherit", "ipc"],
  });
}
