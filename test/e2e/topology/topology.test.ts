/**
 * The deployment of docker-compose.yml, process by process and without containers (test/support/topology.ts): it serves, and
 * while customers ask it, what it stands on is SIGKILLed, one after the other: the scheduler that leads, every inference
 * worker, Redis, PostgreSQL. Nothing is lost, what customers were told is true, and the books balance to the mil.
 *
 * `npm test` kills each once, `npm run chaos` in ten rounds.
 */
import { randomBytes } from "node:crypto";
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";

import { afterAll, beforeAll, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import { type CreatedKey, createKey } from "#keys/keys.ts";
import { balanceOf } from "#ledger/ledger.ts";
import { verifyLedger } from "#ledger/verify.ts";
import { startTopology, type Topology } from "#test/support/topology.ts";

import { createPatientClient } from "../../chaos/patient-client.ts";
import { eventually } from "../../queue/test-queue.ts";
import { ACTIONS, ask, keepAsking, MODEL, type Told } from "./load.ts";

const LONG = process.env["CHAOS"] === "long";
const ROUNDS = LONG ? 10 : 1;
const CUSTOMERS = LONG ? 6 : 3;
const WORKERS = 2;
/** Asked for at once before each kill, so that it meets rollouts in the backlog, in the queues and at the workers. */
const BURST = 12;
/** So many of them, or of the others, have not ended when something is killed. */
const BUSY = 4;
const GRANTED = mils(10_000_000);
const PRICE = 5n;
/** From one kill to a video that was asked for after it: processes start, locks run out, queues connect again. */
const SERVES_AGAIN_WITHIN_MS = 120_000;
/** The promise is 5 s from the kill; our looks and a busy machine come on top. */
const LEADS_AGAIN_WITHIN_MS = 10_000;

let topology: Topology;
beforeAll(async () => {
  mkdirSync("test-output", { recursive: true });
  const logFile = join("test-output", "topology.log");
  rmSync(logFile, { force: true });
  topology = await startTopology({ model: MODEL, workers: WORKERS, logFile });
}, 6 * 60_000);
afterAll(async () => {
  await topology?.stop();
}, 60_000);

const newCustomer = (name: string): Promise<CreatedKey> =>
  createKey(topology.db, { customer: `${name}@example.com`, initial_credits: GRANTED }, randomBytes);

test("serves through both gateways, whoever waits or comes back, under a role of each process's own", async () => {
  const key = await newCustomer("plain");
  const [one, two] = topology.gateways.map((url) => createPatientClient(url, key.api_key));
  if (!one || !two) throw new Error("expected two gateways");
  const told = [
    await ask(key, "async", 1, one, two),
    await ask(key, "sync", 2, two, one),
    await ask(key, "batch", 3, one, two),
    await ask(key, "async", 4, two, one),
  ];
  expect(told.map(({ end }) => end)).toEqual(["succeeded", 200, 200, "succeeded"]);
  expect(GRANTED - (await balanceOf(topology.db, key.customer_id))).toBe(5n * BigInt(ACTIONS + 1) * PRICE);

  const users = await topology.db.query<{ usename: string }>(
    "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = current_database() AND usename <> current_user",
  );
  const roles = ["gateway", "notifier", "runner", "scheduler", "settlement"].map((part) => `dream_${part}`);
  expect(users.map(({ usename }) => usename).toSorted()).toEqual(roles);
  const doctor = await topology.command("doctor");
  expect(doctor.code, doctor.stdout + doctor.stderr).toBe(0);
});

const FAULTS: readonly (readonly [name: string, inflict: () => Promise<void>])[] = [
  ["the scheduler that leads", killLeader],
  ["every inference worker", killWorkers],
  ["Redis, which comes back with its append-only file", () => topology.redis.crash()],
  ["PostgreSQL, which recovers", () => topology.postgres.crash()],
];

test(
  `SIGKILLs under load, ${FAULTS.length} kinds × ${ROUNDS}: nothing is lost, the books balance, refunds are exact`,
  { timeout: LONG ? 60 * 60_000 : 5 * 60_000 },
  async () => {
    const customers = await Promise.all(Array.from({ length: CUSTOMERS }, (_, n) => newCustomer(`load-${n}`)));
    const told: Told[] = [];
    const over = new AbortController();
    const traffic = customers.map((customer) => keepAsking(customer, topology.gateways, told, over.signal));
    const bursts: Promise<unknown>[] = [];
    for (let round = 0; round < ROUNDS; round++) {
      for (const [name, inflict] of FAULTS) {
        await untilServed(told, `before the end of ${name}`);
        bursts.push(...burst(customers[0], told));
        await eventually(async () => (await unsettled()) >= BUSY, SERVES_AGAIN_WITHIN_MS);
        const startedAt = performance.now();
        await inflict();
        await untilServed(told, `after the end of ${name}`);
        console.log(`${name}: serves again after ${((performance.now() - startedAt) / 1000).toFixed(1)} s`);
      }
    }
    over.abort();
    await Promise.all([...traffic, ...bursts]);
    await eventually(async () => (await unsettled()) === 0, SERVES_AGAIN_WITHIN_MS);

    await checkTold(told);
    expect(await verifyLedger(topology.db)).toEqual([]);
    for (const customer of customers) await checkBooks(customer);
    const doctor = await topology.command("doctor");
    expect(doctor.code, doctor.stdout + doctor.stderr).toBe(0);
    const ends = [...Map.groupBy(told, ({ end }) => end)].map(([end, all]) => `${end}: ${all.length}`);
    console.log(`${told.length} rollouts (${ends.join(", ")})`);
  },
);

let bursted = 0;
function burst(customer: CreatedKey | undefined, told: Told[]): Promise<unknown>[] {
  if (!customer) throw new Error("expected a customer");
  const clients = topology.gateways.map((url) => createPatientClient(url, customer.api_key));
  return Array.from({ length: BURST }, async () => {
    const [client, other] = (bursted += 1) % 2 === 0 ? clients : clients.toReversed();
    if (!client || !other) throw new Error("expected two gateways");
    told.push(await ask(customer, "async", 1_000_000 + bursted, client, other));
  });
}

async function killLeader(): Promise<void> {
  const leader = await eventually(() => topology.leader());
  const before = await epoch();
  expect(topology.processes.kill(leader)).toBe(true);
  await eventually(async () => (await epoch()) > before, LEADS_AGAIN_WITHIN_MS);
}

async function killWorkers(): Promise<void> {
  for (const name of topology.processes.pids().keys()) if (name.startsWith("worker")) topology.processes.kill(name);
}

/** Until everybody's next request is answered with a video: a kill of what is still down would prove nothing. */
async function untilServed(told: readonly Told[], when: string): Promise<void> {
  const since = performance.now();
  const isServed = async (): Promise<boolean> =>
    told.some(({ askedMs, end }) => askedMs > since && (end === 200 || end === "succeeded"));
  await eventually(isServed, SERVES_AGAIN_WITHIN_MS).catch((error: unknown) => {
    throw new Error(`nobody was served ${when}; see the log file`, { cause: error });
  });
}

async function epoch(): Promise<bigint> {
  const [row] = await topology.db.query<{ epoch: bigint }>("SELECT epoch FROM scheduler_leader");
  return row?.epoch ?? 0n;
}

async function unsettled(): Promise<number> {
  const rows = await topology.db.query("SELECT id FROM rollouts WHERE status IN ('queued', 'dispatched')");
  return rows.length;
}

/** What they were told is what the rows say. Nobody asked for anything wrong: an error is ours (5xx), and free. */
async function checkTold(told: readonly Told[]): Promise<void> {
  const rows = await topology.db.query<{ id: string; status: string }>("SELECT id, status FROM rollouts");
  const statusOf = new Map(rows.map(({ id, status }) => [id, status]));
  const named = told.filter(({ rolloutId }) => rolloutId !== null);
  expect(named.map(({ rolloutId }) => statusOf.get(rolloutId ?? ""))).toEqual(
    named.map(({ kind, end }) => (kind === "async" ? end : "succeeded")),
  );
  const numbers = told.map(({ end }) => end).filter((end) => typeof end === "number");
  expect(numbers.filter((status) => status !== 200 && status < 500)).toEqual([]);
}

/** Earned is what succeeded, at the price; everything else came back, to the mil. */
async function checkBooks({ customer_id }: CreatedKey): Promise<void> {
  const rows = await topology.db.query<{ status: string; frames: number; charge: bigint; refunded: bigint }>(
    `SELECT status, frames, charge_mils AS charge, refunded_mils AS refunded FROM rollouts WHERE customer_id = $1`,
    [customer_id],
  );
  for (const { status, charge, refunded } of rows) expect(refunded).toBe(status === "succeeded" ? 0n : charge);
  const earned = rows.reduce(
    (sum, { status, frames }) => sum + (status === "succeeded" ? BigInt(frames) * PRICE : 0n),
    0n,
  );
  expect(rows.filter(({ status }) => status === "succeeded").length).toBeGreaterThan(FAULTS.length * ROUNDS);
  expect(GRANTED - (await balanceOf(topology.db, customer_id))).toBe(earned);
}
