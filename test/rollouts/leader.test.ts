import { afterAll, beforeAll, expect, test } from "vitest";

import { createDatabase, type Database } from "#platform/database.ts";
import { markDispatched } from "#rollouts/dispatch.ts";
import { tryLead } from "#rollouts/leader.ts";
import { accept, newCustomer } from "#test/support/ledger.ts";
import { createTestDatabase, silentLog, type TestDatabase, untilWaitingForLocks } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
/** Another process's view of the same database. */
let elsewhere: Database;
beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
  elsewhere = createDatabase({ url: database.url, log: silentLog });
});
afterAll(async () => {
  await elsewhere.stop();
  await database.drop();
});

test("one leads at a time, and each term has a higher epoch", async () => {
  const first = await tryLead(db, "one");
  expect(first).not.toBeNull();
  expect(await tryLead(elsewhere, "two")).toBeNull();
  expect(await tryLead(db, "one again")).toBeNull();

  await first?.resign();
  await first?.resign();
  const second = await untilNotNull(() => tryLead(elsewhere, "two"));
  expect(second.epoch).toBeGreaterThan(first?.epoch ?? 0n);
  const [row] = await db.query<{ holder: string; epoch: bigint }>("SELECT holder, epoch FROM scheduler_leader");
  expect(row).toEqual({ holder: "two", epoch: second.epoch });
  await second.resign();
});

test("a standby that keeps trying leaves its pool's connections as they were", async () => {
  const leader = await untilNotNull(() => tryLead(db, "leader"));
  const standby = createDatabase({ url: database.url, log: silentLog, poolMax: 1 });
  for (let attempt = 0; attempt < 30; attempt++) await tryLead(standby, "standby");
  const client = await standby.pool.connect();
  expect(client.listenerCount("error")).toBeLessThanOrEqual(2);
  client.release();
  await standby.stop();
  await leader.resign();
});

test("a leader whose connection is cut hears of it, the next one takes over, and the old one's writes come to nothing", async () => {
  const key = await newCustomer(db);
  const rollout = await accept(db, key);
  const old = await untilNotNull(() => tryLead(db, "old"));
  await elsewhere.query(
    `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`,
  );
  expect(await old.lost).toBeInstanceOf(Error);

  const next = await untilNotNull(() => tryLead(elsewhere, "next"));
  expect(await markDispatched(db, old.epoch, [rollout.id])).toEqual([]);
  expect(await markDispatched(elsewhere, next.epoch, [rollout.id])).toHaveLength(1);
  await old.resign();
  await next.resign();
});

test("a new term begins after the writes of the old one that are under way, not between them", async () => {
  const key = await newCustomer(db);
  const rollout = await accept(db, key);
  const old = await untilNotNull(() => tryLead(db, "old"));
  let next: ReturnType<typeof tryLead> | undefined;
  await db.transaction(async (tx) => {
    await markDispatched(tx, old.epoch, [rollout.id]);
    await old.resign(); // the lock is gone, the write is not yet committed
    let began = false;
    next = untilNotNull(() => tryLead(elsewhere, "next"));
    void next.then(() => (began = true));
    await untilWaitingForLocks(db, 1);
    expect(began).toBe(false);
  });
  const leadership = await next;
  expect(leadership?.epoch).toBe(old.epoch + 1n);
  await leadership?.resign();
});

/** The server notices a closed connection a moment later. */
async function untilNotNull<T>(attempt: () => Promise<T | null>): Promise<T> {
  let result: T | null = null;
  await expect.poll(async () => (result = await attempt()), { timeout: 5_000, interval: 10 }).not.toBeNull();
  return result as T; // the poll has just seen it
}
