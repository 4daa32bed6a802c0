import { Registry } from "prom-client";
import { afterAll, beforeAll, expect, test } from "vitest";

import { jobIdOf } from "#contract/ids.ts";
import type { Outcome } from "#contract/jobs.ts";
import { mils } from "#contract/mils.ts";
import { balanceOf } from "#ledger/ledger.ts";
import { verifyLedger } from "#ledger/verify.ts";
import type { Database } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { createPostgresQueues } from "#queue/postgres.ts";
import { settlementQueue } from "#queue/queues.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import { accept, dispatch, failed, newCustomer, succeeded } from "#test/support/ledger.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";
import { moneyMetricsOf } from "#ledger/metrics.ts";
import { startSettlementWorker } from "#workers/settlement/worker.ts";

let database: TestDatabase;
let db: Database;
let queues: QueueSystem;
let worker: Service;
const finished: string[] = [];

beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
  queues = await createPostgresQueues({ url: database.url, log: silentLog, migrate: true });
  await queues.signals.subscribe(
    ["finished"],
    (signal) => void ("rollout_id" in signal && finished.push(signal.rollout_id)),
  );
  const money = moneyMetricsOf(new Registry());
  worker = await startSettlementWorker({ db: database.as("settlement"), queues, money, log: silentLog });
});
afterAll(async () => {
  await worker?.stop();
  await queues?.stop();
  await database.drop();
});

const report = (rollout: Rollout, outcome: Outcome, attempt = 1): Promise<void> =>
  settlementQueue(queues).add(jobIdOf(rollout.id, attempt), { rollout_id: rollout.id, attempt, outcome });

const untilTold = (rollout: Rollout): Promise<void> =>
  expect.poll(() => finished.includes(rollout.id), { timeout: 10_000, interval: 10 }).toBe(true);

/** It is told before its job is gone from the queue, and until then the same job cannot be added again. */
const untilGone = (rollout: Rollout, attempt: number): Promise<void> =>
  expect.poll(() => settlementQueue(queues).find(jobIdOf(rollout.id, attempt)), { timeout: 10_000 }).toBeNull();

test("settles what workers report, tells who waits, and keeps nothing in the queue", async () => {
  const key = await newCustomer(db, mils(1_000));
  const [good, bad] = [await accept(db, key), await accept(db, key)];
  await dispatch(db, good.id);
  await dispatch(db, bad.id);

  await report(good, succeeded());
  await report(bad, failed());
  await Promise.all([untilTold(good), untilTold(bad)]);

  const rows = await db.query("SELECT status, refunded_mils FROM rollouts ORDER BY created_at");
  expect(rows).toEqual([
    { status: "succeeded", refunded_mils: 0n },
    { status: "failed", refunded_mils: 245n },
  ]);
  await expect.poll(() => settlementQueue(queues).counts()).toEqual({ waiting: 0, active: 0, failed: 0 });
  expect(await balanceOf(db, key.customer_id)).toBe(755n);
});

test("an outcome that is reported again, or of an attempt that is over, refunds nothing more", async () => {
  const key = await newCustomer(db, mils(1_000));
  const rollout = await accept(db, key);
  await dispatch(db, rollout.id);
  await report(rollout, failed());
  await untilTold(rollout);
  await untilGone(rollout, 1);

  for (const attempt of [1, 2]) {
    finished.length = 0;
    await report(rollout, attempt === 1 ? succeeded() : failed(), attempt);
    await untilTold(rollout); // told again: whoever settled it may have died before telling
  }
  expect(await balanceOf(db, key.customer_id)).toBe(1_000n);
  expect(await verifyLedger(db)).toEqual([]);
});
