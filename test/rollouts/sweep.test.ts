import { afterAll, beforeAll, expect, test } from "vitest";

import type { Database } from "#platform/database.ts";
import { deleteDeadLeases, dropLease, readAbandoned, renewLease } from "#rollouts/leases.ts";
import { type Leadership, tryLead } from "#rollouts/leader.ts";
import { settle } from "#rollouts/settle.ts";
import { deleteOldIdempotencyKeys, nextOverdue, postpone, readExpired, readOwners } from "#rollouts/sweep.ts";
import { accept, cancelled, dispatch, newCustomer, succeeded } from "#test/support/ledger.ts";
import { createTestDatabase, type TestDatabase, untilWaitingForLocks } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
let leader: Leadership;
beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
  const leadership = await tryLead(db, "test");
  if (!leadership) throw new Error("nobody else is there to lead");
  leader = leadership;
});
afterAll(async () => {
  await leader.resign();
  await database.drop();
});

const inSeconds = (seconds: number): Date => new Date(Date.now() + seconds * 1_000);

test("the most overdue rollout comes first, and a postponed one comes back at its time", async () => {
  const key = await newCustomer(db);
  const [one, two] = [await accept(db, key), await accept(db, key)];
  await dispatch(db, one.id);
  await dispatch(db, two.id);
  await postpone(db, one.id, inSeconds(-5));
  await postpone(db, two.id, inSeconds(-10));
  const next = async (now: Date): Promise<string | undefined> => (await nextOverdue(db, leader.epoch, now))?.id;

  expect(await next(inSeconds(0))).toBe(two.id);
  await postpone(db, two.id, inSeconds(60));
  expect(await next(inSeconds(0))).toBe(one.id);
  await settle(db, one.id, 1, succeeded());
  expect(await next(inSeconds(0))).toBeUndefined();
  expect(await next(inSeconds(61))).toBe(two.id);
  expect(await nextOverdue(db, leader.epoch - 1n, inSeconds(61))).toBeNull(); // not its term any more
  await settle(db, two.id, 1, succeeded());
});

test("nobody settles a rollout while it is looked at, and the look passes over what is being settled", async () => {
  const key = await newCustomer(db);
  const rollout = await accept(db, key);
  await dispatch(db, rollout.id);

  let settling: ReturnType<typeof settle> | undefined;
  await db.transaction(async (tx) => {
    expect((await nextOverdue(tx, leader.epoch, inSeconds(1)))?.id).toBe(rollout.id);
    settling = settle(db, rollout.id, 1, succeeded());
    await untilWaitingForLocks(db, 1);
    expect(await nextOverdue(db, leader.epoch, inSeconds(1))).toBeNull();
    expect(await settle(tx, rollout.id, 1, cancelled)).toMatchObject({ settled: true });
  });
  expect(await settling).toMatchObject({ settled: false, rollout: { status: "cancelled" } });
});

test("a queued rollout is expired after its deadline; a dispatched one is the sweep's to judge", async () => {
  const key = await newCustomer(db);
  const deadline_at = inSeconds(30);
  const queued = await accept(db, key, { deadline_at });
  const running = await accept(db, key, { deadline_at });
  await dispatch(db, running.id);

  expect(await readExpired(db, inSeconds(29), 10)).toEqual([]);
  expect(await readExpired(db, inSeconds(31), 10)).toEqual([queued.id]);
});

test("rollouts whose gateway is gone are abandoned, others and asynchronous ones are not", async () => {
  const key = await newCustomer(db);
  await renewLease(db, "alive");
  await renewLease(db, "dead");
  await renewLease(db, "stopped");
  await accept(db, key, { waiter_id: "alive" });
  await accept(db, key, { waiter_id: null });
  const orphans = [
    await accept(db, key, { waiter_id: "dead" }),
    await accept(db, key, { waiter_id: "stopped" }),
    await accept(db, key, { waiter_id: "never-seen" }),
  ];
  const finished = await accept(db, key, { waiter_id: "dead" });
  await settle(db, finished.id, null, cancelled);
  await dispatch(db, orphans[0]?.id ?? finished.id);

  await db.query("UPDATE gateway_leases SET seen_at = now() - interval '11 s' WHERE id = 'dead'");
  await dropLease(db, "stopped");
  expect(await readAbandoned(db, 10_000, 10)).toEqual(orphans.map(({ id }) => id));
  expect(await readAbandoned(db, 10_000, 1)).toHaveLength(1);

  await renewLease(db, "dead"); // it was only slow
  expect(await readAbandoned(db, 10_000, 10)).toEqual(orphans.slice(1).map(({ id }) => id));

  await db.query("UPDATE gateway_leases SET seen_at = now() - interval '2 h' WHERE id = 'dead'");
  await deleteDeadLeases(db, 3_600_000);
  expect(await db.query("SELECT id FROM gateway_leases")).toEqual([{ id: "alive" }]);
});

test("old idempotency keys are forgotten a bounded number at a time, by the leader only", async () => {
  const key = await newCustomer(db);
  for (const name of ["a", "b", "c", "young"]) await accept(db, key, { idempotency_key: name });
  await db.query("UPDATE idempotency_keys SET created_at = now() - interval '25 h' WHERE key <> 'young'");
  const dayAgo = inSeconds(-86_400);

  expect(await deleteOldIdempotencyKeys(db, leader.epoch - 1n, dayAgo, 10)).toBe(0);
  expect(await deleteOldIdempotencyKeys(db, leader.epoch, dayAgo, 2)).toBe(2);
  expect(await deleteOldIdempotencyKeys(db, leader.epoch, dayAgo, 2)).toBe(1);
  expect(await db.query("SELECT key FROM idempotency_keys")).toEqual([{ key: "young" }]);
});

test("tells which blobs have an owner", async () => {
  const key = await newCustomer(db);
  const { id } = await accept(db, key);
  await dispatch(db, id);
  expect(await readOwners(db, [id, "rollout_00"])).toEqual([
    { id, status: "dispatched", attempt: 1, result: null, files_deleted_at: null },
  ]);
});
