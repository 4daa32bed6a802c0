/**
 * A gateway that is killed between the debit and its answer: it is frozen when the statement that charges leaves it, the
 * database commits, and then it gets SIGKILL. Whoever repeats the request with the same key gets the same rollout, paid
 * once. The gateway is a process of its own; what is behind it goes on.
 */
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { Registry } from "prom-client";
import { afterAll, beforeAll, expect, test } from "vitest";

import { createFsBlobs } from "#blobs/fs.ts";
import { freePort } from "#cli/ports.ts";
import { type CreatedKey, createKey } from "#keys/keys.ts";
import { moneyMetricsOf } from "#ledger/metrics.ts";
import { verifyLedger } from "#ledger/verify.ts";
import { loadManifests } from "#platform/bundles.ts";
import { systemClock } from "#platform/clock.ts";
import { type Service, stopAll } from "#platform/lifecycle.ts";
import { openQueues } from "#queue/open-queues.ts";
import { mils } from "#contract/mils.ts";
import { startScheduler } from "#scheduler/scheduler.ts";
import { type PgProxy, startPgProxy } from "#test/support/pg-proxy.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";
import { startSettlementWorker } from "#workers/settlement/worker.ts";
import { randomBytes } from "node:crypto";

import { startInstantWorker } from "./instant-worker.ts";
import { type ProcessGroup, startProcessGroup } from "./process-group.ts";

const MODEL = "pusht-small";
const CHARGE = 245n;
const GRANTED = mils(10n * CHARGE);
const DONE_WITHIN_MS = 30_000;

let database: TestDatabase;
let proxy: PgProxy;
let gateway: ProcessGroup;
let folder: string;
const parts: [string, Service][] = [];

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "dream-idempotency-"));
  const blobDir = join(folder, "blobs");
  mkdirSync(blobDir);
  mkdirSync("test-output", { recursive: true });
  database = await createTestDatabase();
  proxy = await startPgProxy(database.url);
  const queues = await openQueues({ redis_url: undefined, database_url: database.url, migrate: true, log: silentLog });
  parts.push(["queues", queues]);
  const blobs = createFsBlobs(blobDir);
  const registry = new Registry();
  const money = moneyMetricsOf(registry);
  const models = (await loadManifests("models")).filter(({ slug }) => slug === MODEL);
  const settlement = { db: database.as("settlement"), queues, money, log: silentLog };
  parts.push(["settlement", await startSettlementWorker(settlement)]);
  parts.push(["worker", await startInstantWorker({ queues, blobs, model: MODEL, outcomeOf: () => null })]);
  const scheduler = await startScheduler({
    db: database.as("scheduler"),
    queues,
    blobs,
    models,
    scaling: { fleet: null, limits: { minimum: 0, maximum: 1, scaledown_s: 60 } },
    retentionMs: 86_400_000,
    datasetIdleMs: 30 * 86_400_000,
    scoredAtOnceMax: 2,
    gpuUsdPerHour: 3.95,
    holder: "test",
    clock: systemClock,
    log: silentLog,
    registry,
  });
  parts.push(["scheduler", scheduler]);
  gateway = await startProcessGroup({
    env: { DATABASE_URL: proxy.url, DATA_DIR: folder, BLOB_URL: `file://${blobDir}`, LOG_LEVEL: "info" },
    port: await freePort(),
    model: MODEL,
    logFile: join("test-output", "chaos-idempotency.log"),
    roles: ["gateway"],
  });
}, 120_000);
afterAll(async () => {
  await gateway?.stop();
  await stopAll(parts, silentLog);
  await proxy?.stop();
  await database?.drop();
  rmSync(folder, { recursive: true, force: true });
}, 60_000);

interface Answer {
  readonly status: number;
  readonly id: string | undefined;
}

/** Null when the connection broke. */
async function send(key: CreatedKey, mode: "sync" | "async"): Promise<Answer | null> {
  const form = new FormData();
  const example = `models/${MODEL}/example`;
  form.set("start_frame", new Blob([readFileSync(`${example}/start_frame.png`)]), "frame.png");
  form.set("actions", new Blob([readFileSync(`${example}/actions.npy`)]), "actions.npy");
  form.set("params", JSON.stringify({ mode, seed: 3 }));
  try {
    const answer = await fetch(`${gateway.baseUrl}/v1/rollouts`, {
      method: "POST",
      body: form,
      headers: { authorization: `Bearer ${key.api_key}`, "idempotency-key": "crash" },
    });
    return { status: answer.status, id: ((await answer.json()) as { id?: string }).id };
  } catch {
    return null;
  }
}

/** Until a new gateway has answered; a published client tries again in the same way. */
async function sendUntilAnswered(key: CreatedKey, mode: "sync" | "async"): Promise<Answer> {
  const until = Date.now() + DONE_WITHIN_MS;
  for (;;) {
    const answer = await send(key, mode);
    if (answer) return answer;
    if (Date.now() > until) throw new Error("no gateway came back");
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

interface Row {
  readonly id: string;
  readonly status: string;
  readonly charge: number;
  readonly refunded: number;
}
const rowsOf = (key: CreatedKey): Promise<Row[]> =>
  database.db.query<Row>(
    `SELECT id, status, charge_mils::int AS charge, refunded_mils::int AS refunded FROM rollouts
      WHERE customer_id = $1 ORDER BY created_at`,
    [key.customer_id],
  );

async function expectPaidOnce(key: CreatedKey, charge: bigint): Promise<void> {
  const [books] = await database.db.query<{ balance: bigint; debits: number }>(
    `SELECT balance_mils AS balance,
            (SELECT count(*) FROM ledger_entries WHERE customer_id = $1 AND kind = 'debit')::int AS debits
       FROM accounts WHERE customer_id = $1 AND account = 'balance'`,
    [key.customer_id],
  );
  expect(books).toEqual({ balance: GRANTED - charge, debits: 1 });
  expect(await verifyLedger(database.db)).toEqual([]);
}

/** Freezes the gateway as soon as it has sent what charges. */
function freezeAtTheDebit(fault: "cut before" | null): { readonly frozen: Promise<void> } {
  const frozen = Promise.withResolvers<void>();
  const pid = gateway.pids().get("gateway");
  if (pid === undefined) throw new Error("no gateway is up");
  proxy.faultOf = ({ text }) => {
    if (!text.includes("INSERT INTO rollouts")) return null;
    proxy.faultOf = () => null;
    process.kill(pid, "SIGSTOP");
    frozen.resolve();
    return fault;
  };
  return { frozen: frozen.promise };
}

test.for(["async", "sync"] as const)(
  "killed after the debit is committed (%s): the same key again is the same rollout, paid once",
  { timeout: 90_000 },
  async (mode) => {
    const key = await createKey(
      database.db,
      { customer: `${mode}@example.com`, initial_credits: GRANTED },
      randomBytes,
    );
    const { frozen } = freezeAtTheDebit(null);
    const first = send(key, mode);
    await frozen;
    await expect.poll(() => rowsOf(key), { timeout: 10_000 }).toHaveLength(1);
    expect(gateway.kill("gateway")).toBe(true);
    expect(await first).toBeNull(); // its caller learns nothing

    const again = await sendUntilAnswered(key, mode);
    const [paid] = await rowsOf(key);
    expect(again.id).toBe(paid?.id);
    expect(mode === "sync" ? [200] : [200, 202]).toContain(again.status);
    await expect
      .poll(() => rowsOf(key), { timeout: DONE_WITHIN_MS })
      .toMatchObject([{ id: paid?.id, status: "succeeded", refunded: 0 }]);
    await expectPaidOnce(key, BigInt(paid?.charge ?? 0));
    // And once more, of what has ended.
    expect(await send(key, mode)).toEqual({ status: 200, id: paid?.id });
    await expectPaidOnce(key, BigInt(paid?.charge ?? 0));
  },
);

test("killed before the database has heard of it: the same key again is the first rollout there is, paid once", async () => {
  const key = await createKey(database.db, { customer: "before@example.com", initial_credits: GRANTED }, randomBytes);
  const { frozen } = freezeAtTheDebit("cut before");
  const first = send(key, "async");
  await frozen;
  await proxy.untilServerNoticed(database.db);
  expect(await rowsOf(key)).toEqual([]);
  expect(gateway.kill("gateway")).toBe(true);
  expect(await first).toBeNull();

  const again = await sendUntilAnswered(key, "async");
  expect(again.status).toBe(202);
  await expect
    .poll(() => rowsOf(key), { timeout: DONE_WITHIN_MS })
    .toMatchObject([{ id: again.id, status: "succeeded", refunded: 0 }]);
  const [paid] = await rowsOf(key);
  await expectPaidOnce(key, BigInt(paid?.charge ?? 0));
}, 90_000);
