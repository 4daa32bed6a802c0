/**
 * Promise 3, attacked where money moves: gateway, settlement worker and database (all its processes at once, on a disk
 * that it syncs to) are SIGKILLed at random moments, while customers call and Stripe tells of payments. Workers answer at
 * once, so what is killed is nearly always in the middle of a debit, a refund, a settlement or a credit.
 *
 * `npm test` runs a few trials, `npm run chaos` 300. CHAOS_SEED replays a failure's schedule.
 */
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

import { afterAll, beforeAll, expect, test } from "vitest";

import { createFsBlobs } from "#blobs/fs.ts";
import { freePort } from "#cli/ports.ts";
import { milsFromUsd } from "#contract/mils.ts";
import { type CreatedKey, createKey } from "#keys/keys.ts";
import { verifyLedger } from "#ledger/verify.ts";
import { createDatabase, type Database } from "#platform/database.ts";
import { migrate } from "#platform/migrate.ts";
import type { Service } from "#platform/lifecycle.ts";
import { openQueues } from "#queue/open-queues.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { silentLog } from "#test/support/postgres.ts";
import { httpEndpoint } from "#test/support/stripe/deliveries.ts";
import {
  startStripeStandIn,
  type StripeStandIn,
  TEST_SECRET_KEY,
  TEST_WEBHOOK_SECRET,
} from "#test/support/stripe/stand-in.ts";
import { npy } from "#test/support/npy.ts";

import { checkAnswers, checkTopUps, type Told } from "./money-check.ts";
import { startInstantWorker } from "./instant-worker.ts";
import { type OwnPostgres, startOwnPostgres } from "./own-postgres.ts";
import { type ProcessGroup, startProcessGroup } from "./process-group.ts";
import { type Random, seededRandom } from "./random.ts";

const LONG = process.env["CHAOS"] === "long";
const SEED = Number(process.env["CHAOS_SEED"] ?? (LONG ? Date.now() % 2 ** 31 : 20_261_122));
const TRIALS = LONG ? 300 : 6;
const CUSTOMERS = 4;
const MODEL = "pusht-small";
/** The sweep waits 15 s for a gateway's lease before it gives its callers up. */
const SETTLED_WITHIN_MS = 90_000;
/** Processes start, the database recovers, queues connect again. */
const BUSY_WITHIN_MS = 60_000;
const GRANTED = milsFromUsd("1000");
const VICTIMS = [
  "gateway",
  "gateway",
  "settlement",
  "settlement",
  "database",
  "gateway and database",
  "settlement and database",
] as const;

let postgres: OwnPostgres;
let db: Database;
let queues: QueueSystem;
let worker: Service;
let stripe: StripeStandIn;
let group: ProcessGroup;
let folder: string;

beforeAll(async () => {
  mkdirSync("test-output", { recursive: true });
  const logFile = join("test-output", "chaos-money.log");
  rmSync(logFile, { force: true });
  folder = mkdtempSync(join(tmpdir(), "dream-crash-"));
  postgres = await startOwnPostgres();
  await migrate(postgres.url, silentLog);
  db = createDatabase({ url: postgres.url, log: silentLog });
  queues = await openQueues({ redis_url: undefined, database_url: postgres.url, migrate: true, log: silentLog });
  stripe = await startStripeStandIn();
  const blobs = join(folder, "blobs");
  mkdirSync(blobs);
  worker = await startInstantWorker({
    queues,
    blobs: createFsBlobs(blobs),
    model: MODEL,
    // Every seventh fails, some of those after frames that reached the customer.
    outcomeOf: ({ params, k, actions_per_candidate }) => {
      const seed = Number(params.seed);
      const frames_delivered = seed % 3 === 0 ? Math.floor((k * (actions_per_candidate + 1)) / 2) : 0;
      return seed % 7 === 0 ? { kind: "failed", code: "engine_failed", message: "scripted", frames_delivered } : null;
    },
  });
  group = await startProcessGroup({
    env: {
      DATABASE_URL: postgres.url,
      DATA_DIR: folder,
      BLOB_URL: `file://${blobs}`,
      LOG_LEVEL: "info",
      STRIPE_SECRET_KEY: TEST_SECRET_KEY,
      STRIPE_WEBHOOK_SECRET: TEST_WEBHOOK_SECRET,
      STRIPE_API_BASE: stripe.url,
    },
    port: await freePort(),
    model: MODEL,
    logFile,
    roles: ["gateway", "scheduler", "settlement"],
  });
}, 120_000);

afterAll(async () => {
  await group?.stop();
  await worker?.stop();
  await queues?.stop();
  await db?.stop();
  await stripe?.stop();
  await postgres?.stop();
  rmSync(folder, { recursive: true, force: true });
}, 60_000);

test(
  `after ${TRIALS} kills of gateway, settlement or database the books are clean and every answer was true`,
  async () => {
    console.log(`chaos seed ${SEED} (replay: CHAOS_SEED=${SEED})`);
    const random = seededRandom(SEED);
    const customers = await makeCustomers();
    const told: Told[] = [];
    const problems: string[] = [];
    const over = new AbortController();
    const traffic = [
      ...customers.map((customer, index) => call(customer, seededRandom(SEED + index + 1), told, over.signal)),
      topUp(customers, seededRandom(SEED + 100), over.signal),
    ];

    for (let trial = 0; trial < TRIALS; trial++) {
      await untilBusy(told);
      await delay(random.integer(0, 300));
      await kill(random.pick(VICTIMS));
      // At any moment, not only at the end: a statement is in the books whole or not at all.
      problems.push(...(trial % 10 === 9 ? await patiently(() => verifyLedger(db)) : []));
    }
    over.abort();
    await Promise.all(traffic);
    await expect.poll(unsettled, { timeout: SETTLED_WITHIN_MS, interval: 250 }).toEqual([]);
    await group.untilReady();
    await deliverAll();

    expect(problems).toEqual([]);
    expect(await patiently(() => verifyLedger(db))).toEqual([]);
    expect(told.filter(({ status }) => status === 200).length).toBeGreaterThanOrEqual(TRIALS);
    await checkAnswers(db, told);
    await checkTopUps({ db, stripe, granted: GRANTED }, customers);
    const counts = [...Map.groupBy(told, ({ status }) => status)].map(([status, all]) => `${status}: ${all.length}`);
    const kills = [...group.kills].map(([role, count]) => `${role} ${count}`);
    console.log(`${told.length} calls (${counts.join(", ")}); kills: ${kills.join(", ")}, database ${crashes}`);
  },
  LONG ? 7_200_000 : 240_000,
);

/** Until customers get answers again: a kill of what does nothing proves nothing. */
async function untilBusy(told: readonly Told[]): Promise<void> {
  const before = told.length;
  const isBusy = (): boolean => told.slice(before).some(({ status }) => status === 200);
  await expect.poll(isBusy, { timeout: BUSY_WITHIN_MS, interval: 20 }).toBe(true);
}

let crashes = 0;
async function kill(victim: (typeof VICTIMS)[number]): Promise<void> {
  if (victim.startsWith("gateway")) group.kill("gateway");
  if (victim.startsWith("settlement")) group.kill("settlement");
  if (victim.endsWith("database")) {
    crashes += 1;
    await postgres.crash();
  }
}

const FIRST_TRIES = 40;
/** For what the test itself asks of a database that was killed a moment ago. */
async function patiently<T>(ask: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await ask();
    } catch (error) {
      if (tries === FIRST_TRIES) throw error;
      await delay(100);
    }
  }
}

const makeCustomers = (): Promise<CreatedKey[]> =>
  Promise.all(
    Array.from({ length: CUSTOMERS }, (_, index) =>
      createKey(db, { customer: `crash-${index}@example.com`, initial_credits: GRANTED }, (size) =>
        crypto.getRandomValues(new Uint8Array(size)),
      ),
    ),
  );

const unsettled = (): Promise<unknown[]> =>
  patiently(() => db.query(`SELECT id, status, created_at FROM rollouts WHERE status IN ('queued', 'dispatched')`));

/** One call after the other until it is over. */
async function call(customer: CreatedKey, random: Random, told: Told[], over: AbortSignal): Promise<void> {
  for (let n = 0; !over.aborted; n++) {
    const answer = await ask(
      customer,
      random.integer(1, 1_000_000_000),
      random.integer(0, 2),
      12 * random.integer(1, 3),
    );
    if (answer) told.push(answer);
    if (answer?.status !== 200) await delay(100); // nobody listens, or the database is away
  }
}

const frame = readFileSync(`models/${MODEL}/example/start_frame.png`);
const exampleActions = npy.read(readFileSync(`models/${MODEL}/example/actions.npy`));

/** Null when no answer came: the gateway died under it, or was not there. */
async function ask(customer: CreatedKey, seed: number, kind: number, actions: number): Promise<Told | null> {
  const form = new FormData();
  const file = new Blob([new Uint8Array(npy.write(exampleActions.subarray(0, actions * 2), [actions, 2]))]);
  const isRollout = kind < 2;
  form.set(isRollout ? "start_frame" : "frame", new Blob([frame]), "frame.png");
  form.set("actions", file, "actions.npy");
  form.set(isRollout ? "params" : "seed", isRollout ? JSON.stringify({ seed }) : String(seed));
  const headers = {
    authorization: `Bearer ${customer.api_key}`,
    ...(kind === 1 ? { "idempotency-key": `crash-${seed}` } : {}),
  };
  try {
    const answer = await fetch(`${group.baseUrl}/v1/${isRollout ? "rollouts" : "predict"}`, {
      method: "POST",
      body: form,
      headers,
      signal: AbortSignal.timeout(60_000),
    });
    const body = Buffer.from(await answer.arrayBuffer());
    const envelope = answer.ok && isRollout ? (JSON.parse(body.toString()) as { id: string }) : null;
    return {
      customer,
      status: answer.status,
      requestId: answer.headers.get("x-dreamengine-request-id"),
      rolloutId: envelope?.id ?? null,
      repeat: () => ask(customer, seed, kind, actions),
    };
  } catch {
    return null;
  }
}

/** Customers who pay by card; Stripe tells of it until it is heard. */
async function topUp(customers: readonly CreatedKey[], random: Random, over: AbortSignal): Promise<void> {
  while (!over.aborted) {
    await delay(random.integer(100, 400));
    const customer = customers[random.integer(0, customers.length - 1)];
    if (!customer) continue;
    try {
      const answer = await fetch(`${group.baseUrl}/v1/billing/topup`, {
        method: "POST",
        headers: { authorization: `Bearer ${customer.api_key}`, "content-type": "application/json" },
        body: JSON.stringify({ amount_cents: 100 * random.integer(5, 50) }),
        signal: AbortSignal.timeout(20_000),
      });
      const body = (await answer.json()) as { session_id?: string };
      if (answer.ok && body.session_id !== undefined) {
        const payment = stripe.books.pay(body.session_id);
        if (random.next() < 0.3) stripe.books.refund(payment, 100);
      }
      await stripe.flush(httpEndpoint(group.baseUrl));
    } catch {
      // Nobody listens; what Stripe has to tell stays in its outbox.
    }
  }
}

async function deliverAll(): Promise<void> {
  await patiently(async () => {
    await stripe.flush(httpEndpoint(group.baseUrl));
    if (stripe.outbox.length > 0) throw new Error(`${stripe.outbox.length} events were not taken`);
  });
}
