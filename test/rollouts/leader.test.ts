import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

import { afterAll, afterEach, beforeAll, expect, test } from "vitest";

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
const children: ChildProcess[] = [];
afterEach(() => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
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

/** leader-process.ts and the lines that it says. */
async function startLeader(rolloutId: string, url = database.url) {
  const child = spawn(process.execPath, [fileURLToPath(new URL("leader-process.ts", import.meta.url))], {
    env: { ...process.env, DATABASE_URL: url, ROLLOUT: rolloutId },
    stdio: ["pipe", "pipe", "inherit"],
  });
  children.push(child);
  const lines: string[] = [];
  createInterface({ input: child.stdout }).on("line", (line) => lines.push(line));
  const says = async (start: string): Promise<string> => {
    const line = (): string => lines.find((each) => each.startsWith(start)) ?? "";
    await expect.poll(line, { timeout: 20_000, interval: 10 }).not.toBe("");
    return line();
  };
  const [, epoch = "", marked] = (await says("leads")).split(" ");
  return { child, says, epoch: BigInt(epoch), marked: Number(marked) };
}

/** As a standby does; with how long it took. */
async function takeOver(standby: Database, withinMs: number) {
  const startedAt = performance.now();
  const next = await untilNotNull(() => tryLead(standby, "next"), withinMs, 500);
  return { next, tookMs: performance.now() - startedAt };
}

test("a frozen leader is replaced within 5 s, though it holds the fence's row; woken, it changes nothing", async () => {
  const key = await newCustomer(db);
  const rollout = await accept(db, key);
  const frozen = await startLeader(rollout.id);
  expect(frozen.marked).toBe(1);
  frozen.child.kill("SIGSTOP");

  const { next, tookMs } = await takeOver(elsewhere, 10_000);
  expect(tookMs).toBeLessThan(5_000);
  expect(next.epoch).toBe(frozen.epoch + 1n);
  expect(next.endedOfFrozen).toBe(2); // the lock's connection and the transaction's
  expect(await markDispatched(elsewhere, next.epoch, [rollout.id])).toMatchObject([{ attempt: 1 }]);

  frozen.child.kill("SIGCONT");
  frozen.child.stdin?.write("\n");
  await frozen.says("lost");
  await frozen.says("rolled back");
  expect(await frozen.says("late")).toBe("late 0");
  await next.resign();
});

test("a leader that was killed is replaced at once, in the middle of a write too", async () => {
  const rollout = await accept(db, await newCustomer(db));
  const killed = await startLeader(rollout.id);
  killed.child.kill("SIGKILL");
  const { next, tookMs } = await takeOver(elsewhere, 10_000);
  expect(tookMs).toBeLessThan(5_000);
  expect(next).toMatchObject({ epoch: killed.epoch + 1n, endedOfFrozen: 0 });
  expect(await markDispatched(elsewhere, next.epoch, [rollout.id])).toHaveLength(1);
  await next.resign();
});

test("a leader that lives keeps the lead, however long it has nothing to do", async () => {
  const leader = await untilNotNull(() => tryLead(db, "idle"));
  const end = performance.now() + 3_500; // longer than a silent one is left alone
  while (performance.now() < end) {
    expect(await tryLead(elsewhere, "standby")).toBeNull();
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
  await leader.resign();
});

test("whom its role may not act for, a standby leaves alone", async () => {
  const rollout = await accept(db, await newCustomer(db));
  const frozen = await startLeader(rollout.id); // as the schema's owner
  frozen.child.kill("SIGSTOP");
  const standby = database.as("scheduler");
  const end = performance.now() + 3_500;
  while (performance.now() < end) {
    expect(await tryLead(standby, "standby")).toBeNull();
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
  // One of the owner's may.
  const { next } = await takeOver(elsewhere, 10_000);
  await next.resign();
});

/** The server notices a closed connection a moment later. */
async function untilNotNull<T>(attempt: () => Promise<T | null>, timeout = 5_000, interval = 10): Promise<T> {
  let result: T | null = null;
  await expect.poll(async () => (result = await attempt()), { timeout, interval }).not.toBeNull();
  return result as T; // the poll has just seen it
}
