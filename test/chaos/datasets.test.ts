/**
 * A dataset under fire: a manifest whose rows name their inputs in every way there is comes in by HTTP, some of its rows
 * are bad, some are poison that crashes every engine that touches them, and gateway, scheduler, settlement worker, runner
 * and inference workers are SIGKILLed throughout. Its owner's money runs out half-way and comes back. In the end every
 * row is a video or costs nothing, and the books, the counters, the manifest and the store agree.
 *
 * A good row may fail only where our own kills hit its worker twice; a retry of the failed rows, without kills, then brings
 * all of them, and the poison fails once more at no charge.
 *
 * `npm test`: 200 rows on an engine that returns at once behind the real inference worker and ffmpeg, the queue on
 * PostgreSQL or Redis by turns of the seed (the number of the day). `npm run chaos`: 2,000 rows on the reference model, a
 * chunk or two of actions at one step each, on both. CHAOS_SEED replays a schedule, CHAOS_ROWS changes the number.
 */
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

import { afterEach, describe, expect, test } from "vitest";

import { freePort } from "#cli/ports.ts";
import { mils } from "#contract/mils.ts";
import { type CreatedKey, createKey } from "#keys/keys.ts";
import type { Database } from "#platform/database.ts";
import { type Part, PARTS } from "#platform/roles.ts";
import { openQueues } from "#queue/open-queues.ts";
import { grantQueue } from "#queue/postgres.ts";
import { grant } from "#test/support/ledger.ts";
import { npy } from "#test/support/npy.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";
import { freshRedisUrl } from "#test/support/redis.ts";

import { checkCounters, checkFates, checkMoney, checkStore, readDataset, readRows } from "./dataset-check.ts";
import {
  ACTION_COUNTS,
  actionsFile,
  type Inputs,
  type PlannedRow,
  planRows,
  type Sources,
  startInputServer,
} from "./dataset-manifest.ts";
import { createPatientClient, type PatientClient } from "./patient-client.ts";
import { type ProcessGroup, type Role, startProcessGroup } from "./process-group.ts";
import { type Random, seededRandom } from "./random.ts";

const LONG = process.env["CHAOS"] === "long";
const DAY_MS = 24 * 3_600_000;
const SEED = Number(process.env["CHAOS_SEED"] ?? (LONG ? Date.now() % 2 ** 31 : Math.floor(Date.now() / DAY_MS)));
const ROWS = Number(process.env["CHAOS_ROWS"] ?? (LONG ? 2_000 : 200));
const BAD_SHARE = 0.03;
const POISON_SHARE = 0.02;
const MODEL = "pusht-small";
const MILS_PER_FRAME = 5;
/** What the customer has to begin with, and then for this share of the rows. */
const STARTED_WITH = 1_000;
const FIRST_GRANT_SHARE = 0.6;
const BACKENDS = ["postgres", "redis"] as const;
const ROLES = ["gateway", "scheduler", "settlement", "runner", "instant-a", "instant-b"] as const;
/** Workers more rarely than others: each kill costs their jobs the seconds until the queue sees that they are lost. */
const VICTIMS = ["gateway", "gateway", "scheduler", "settlement", "settlement", "runner", "instant-a"] as const;
const KILLS = LONG ? 400 : 10;
const KILLS_MIN = 4;
const KILLED_STARTING_SHARE = 0.1;
const KILL_AFTER_MS_MAX = LONG ? 3_000 : 800;
/** Where nothing goes on for so long (rows wait for the queue to see that their worker is gone), the next kill comes all the same. */
const PROGRESS_WITHIN_MS = 20_000;
/** Into the receiving of the manifest. */
const STRIKE_AFTER_MS = LONG ? 1_000 : 150;
const CREATED_WITHIN_MS = 90_000;
const DONE_WITHIN_MS = LONG ? 3_000_000 : 200_000;

const stops: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const stop of stops.splice(0).toReversed()) await stop();
}, 60_000);

describe.each(LONG ? BACKENDS : [BACKENDS[SEED % 2 === 0 ? 0 : 1]])("with the queue on %s", (backend) => {
  test(
    `${ROWS} rows, bad and poisonous ones among them, under SIGKILLs: each ends once, and the money is that of the videos`,
    async () => {
      console.log(`chaos seed ${SEED} (replay: CHAOS_SEED=${SEED})`);
      const random = seededRandom(SEED);
      const inputs = exampleInputs();
      const { database, group, blobs } = await startEverything(backend);
      const inputServer = await startInputServer(inputs);
      stops.push(() => inputServer.stop());
      const customer = await createKey(
        database.db,
        {
          customer: "chaos@example.com",
          initial_credits: mils(STARTED_WITH),
          rate_per_s: 1_000,
          burst: 1_000,
        },
        (size) => Uint8Array.from({ length: size }, () => random.integer(0, 255)),
      );
      const client = createPatientClient(group.baseUrl, customer.api_key);

      const sources = await upload(client, inputs, inputServer.url);
      const counts = { rows: ROWS, bad: Math.round(ROWS * BAD_SHARE), poison: Math.round(ROWS * POISON_SHARE) };
      const plan = planRows(random, counts, inputs, sources);
      const granted = await grantFirst(database, customer, plan);
      const id = await create(client, plan, () => group.kill("gateway"));
      const frozen = new AbortController();
      const killer = killUntil(frozen.signal, group, database.db, seededRandom(SEED + 1));
      stops.push(async () => {
        frozen.abort();
        await killer;
      });
      const allGranted = await untilCompleted(client, id, async () => {
        await grant(database.db, { customer_id: customer.customer_id, amount: mils(granted) });
        return granted;
      });
      frozen.abort();
      const workerKills = await killer;

      const books = { db: database.db, client, blobs, customerId: customer.customer_id };
      const total = BigInt(STARTED_WITH + granted + allGranted);
      const rows = await readRows(client, id);
      checkFates(rows, plan, workerKills);
      checkCounters(await readDataset(client, id), rows);
      await checkMoney({ ...books, granted: total }, rows, plan);
      await checkStore({ ...books, granted: total }, id, rows);
      await expectNothingLeft(database);

      const retried = await client.post(`/v1/datasets/${id}/retry`);
      expect(retried.status).toBeLessThan(300);
      await untilCompleted(client, id, () => Promise.reject(new Error("the rest was paid for")));
      const after = await readRows(client, id);
      checkFates(after, plan, 0);
      checkCounters(await readDataset(client, id), after);
      await checkMoney({ ...books, granted: total }, after, plan);
      await checkStore({ ...books, granted: total }, id, after);
      await expectNothingLeft(database);
      const failed = rows.filter(({ state }, index) => state === "failed" && plan[index]?.fate === "good").length;
      const spread = [...Map.groupBy(after, ({ state }) => state)]
        .map(([state, all]) => `${state} ${all.length}`)
        .join(", ");
      expect(allGranted).toBeGreaterThan(0); // it paused, and went on by itself
      // After the rows have ended there is nothing to kill; on a slow machine that is after fewer kills.
      expect([...group.kills.values()].reduce((sum, n) => sum + n, 0)).toBeGreaterThanOrEqual(KILLS_MIN);
      const kills = [...group.kills].map(([role, n]) => `${role} ${n}`).join(", ");
      console.log(`${ROWS} rows (${spread}), ${failed} good ones failed by kills and retried; kills: ${kills}`);
    },
    DONE_WITHIN_MS + 120_000,
  );
});

async function startEverything(
  backend: (typeof BACKENDS)[number],
): Promise<{ readonly database: TestDatabase; readonly group: ProcessGroup; readonly blobs: string }> {
  mkdirSync("test-output", { recursive: true });
  const logFile = join("test-output", `chaos-datasets-${backend}.log`);
  rmSync(logFile, { force: true });
  const folder = mkdtempSync(join(tmpdir(), "dream-chaos-datasets-"));
  stops.push(async () => rmSync(folder, { recursive: true, force: true }));
  const blobs = join(folder, "blobs");
  mkdirSync(blobs);
  const database = await createTestDatabase();
  stops.push(() => database.drop());
  if (backend === "postgres") await openQueueFor(database);
  const group = await startProcessGroup({
    env: {
      DATABASE_URL: database.url,
      ...(backend === "redis" ? { REDIS_URL: await freshRedisUrl() } : {}),
      DATA_DIR: folder,
      BLOB_URL: `file://${blobs}`,
      OUTBOUND_PRIVATE: "on",
      LOG_LEVEL: "info",
    },
    // As deployed: each under a role that may do what it has to, and nothing else.
    envOf: (role) => (isPart(role) ? { DATABASE_URL: database.urlAs(role) } : {}),
    port: await freePort(),
    model: MODEL,
    logFile,
    roles: ROLES,
    standIn: LONG ? "model" : "black",
  });
  stops.push(() => group.stop());
  return { database, group, blobs };
}

const isPart = (role: Role): role is Role & Part => (PARTS as readonly string[]).includes(role);

/** The queue's schema, and the roles' rights in it. */
async function openQueueFor(database: TestDatabase): Promise<void> {
  const options = { redis_url: undefined, database_url: database.url, migrate: true, log: silentLog };
  await (await openQueues(options)).stop();
  for (const role of ROLES) if (isPart(role)) await grantQueue(database.db, `test_${role}`);
}

function exampleInputs(): Inputs {
  const example = join("models", MODEL, "example");
  return {
    frame: readFileSync(join(example, "start_frame.png")),
    actions: npy.read(readFileSync(join(example, "actions.npy"))),
  };
}

async function upload(client: PatientClient, inputs: Inputs, url: string): Promise<Sources> {
  const send = async (file: Buffer): Promise<string> => {
    const answer = await client.post("/v1/uploads", () => {
      const form = new FormData();
      form.set("file", new Blob([new Uint8Array(file)]), "input");
      return form;
    });
    expect({ status: answer.status, body: answer.body.toString() }).toMatchObject({ status: 201 });
    return (answer.json() as { id: string }).id;
  };
  const actions = new Map<number, string>();
  for (const count of ACTION_COUNTS) actions.set(count, await send(actionsFile(inputs, count)));
  return { frameUpload: await send(inputs.frame), actionsUpload: (count) => actions.get(count) ?? "", url };
}

/** What a part of the rows costs; with what the customer had, the dataset has to pause on its way. */
async function grantFirst(database: TestDatabase, customer: CreatedKey, plan: readonly PlannedRow[]): Promise<number> {
  const frames = plan.reduce((sum, { fate, actions }) => sum + (fate === "good" ? actions + 1 : 0), 0);
  const amount = Math.round(FIRST_GRANT_SHARE * frames * MILS_PER_FRAME);
  await grant(database.db, { customer_id: customer.customer_id, amount: mils(amount) });
  return amount;
}

/**
 * The gateway is killed while it receives the manifest; the client sends it all again under the same key, and is told to
 * wait until it is known that the first one has died.
 */
async function create(client: PatientClient, plan: readonly PlannedRow[], strike: () => void): Promise<string> {
  const manifest = new Blob([plan.map(({ line }) => `${line}\n`).join("")]);
  const deadline = Date.now() + CREATED_WITHIN_MS;
  let blow: Promise<void> | undefined;
  for (;;) {
    const sent = client.post(
      "/v1/datasets",
      () => {
        blow ??= delay(STRIKE_AFTER_MS).then(strike);
        const form = new FormData();
        form.set("params", JSON.stringify({ name: "under fire" }));
        form.set("manifest", manifest, "manifest.jsonl");
        return form;
      },
      { "idempotency-key": "under-fire" },
    );
    const answer = await sent;
    if (answer.status === 201 || answer.status === 200) return (answer.json() as { id: string }).id;
    const waits = answer.status === 409 && (answer.json() as ErrorBody).error.code === "still_receiving";
    if (!waits || Date.now() > deadline) {
      throw new Error(`POST /v1/datasets: ${answer.status} ${answer.body.toString().slice(0, 500)}`);
    }
    await delay(1_000);
  }
}

interface ErrorBody {
  readonly error: { readonly code: string };
}

/** Pays when the dataset waits for money; resolves with what was paid. */
async function untilCompleted(client: PatientClient, id: string, pay: () => Promise<number>): Promise<number> {
  const deadline = Date.now() + DONE_WITHIN_MS;
  let paid = 0;
  for (;;) {
    const dataset = await readDataset(client, id);
    if (dataset.state === "completed") return paid;
    if (dataset.pause_reason === "insufficient_credits" && paid === 0) paid = await pay();
    if (Date.now() > deadline) throw new Error(`not completed in time: ${JSON.stringify(dataset)}`);
    await delay(250);
  }
}

/**
 * One kill after the other, each when something has gone on since the one before: a kill of what does nothing proves
 * nothing. Resolves with how often an inference worker was killed: what our kills may have failed at most.
 */
async function killUntil(over: AbortSignal, group: ProcessGroup, db: Database, random: Random): Promise<number> {
  for (let kills = 0; kills < KILLS && !over.aborted; kills++) {
    await untilProgress(over, db);
    await delay(random.integer(0, KILL_AFTER_MS_MAX));
    const victim: Role = random.pick(VICTIMS);
    const target = victim === "instant-a" ? random.pick<Role>(["instant-a", "instant-b"]) : victim;
    // Now and then on its way up, too; but on a busy machine nothing would ever come up.
    const isAnyTime = random.next() < KILLED_STARTING_SHARE;
    await until(over, () => isAnyTime || group.isUp(target));
    if (!over.aborted) group.kill(target);
  }
  return (group.kills.get("instant-a") ?? 0) + (group.kills.get("instant-b") ?? 0);
}

async function untilProgress(over: AbortSignal, db: Database): Promise<void> {
  const look = async (): Promise<string> => {
    const [at] = await db.query<{ entries: bigint; ended: bigint }>(
      `SELECT (SELECT count(*) FROM ledger_entries) AS entries,
              (SELECT count(*) FROM rollouts WHERE finished_at IS NOT NULL) AS ended`,
    );
    return `${at?.entries} ${at?.ended}`;
  };
  const before = await look();
  await until(over, async () => (await look()) !== before);
}

async function until(over: AbortSignal, isSo: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = Date.now() + PROGRESS_WITHIN_MS;
  while (!over.aborted && Date.now() < deadline && !(await isSo())) await delay(50);
}

async function expectNothingLeft({ db }: TestDatabase): Promise<void> {
  const unsettled = await db.query("SELECT id, status FROM rollouts WHERE status IN ('queued', 'dispatched')");
  expect(unsettled).toEqual([]);
  const [held] = await db.query<{ held: bigint }>("SELECT coalesce(sum(held_mils), 0)::bigint AS held FROM datasets");
  expect(held?.held).toBe(0n);
  // Tries that broke off were charged nothing.
  const others = await db.query(
    "SELECT id, state FROM datasets WHERE state NOT IN ('completed') AND (charged_mils > 0 OR rows_running > 0)",
  );
  expect(others).toEqual([]);
}
