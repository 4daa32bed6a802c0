import { Registry } from "prom-client";
import { afterAll, beforeAll, expect, test } from "vitest";

import { recordReconciled } from "#billing/reconciled.ts";
import { readBooks } from "#ledger/books.ts";
import { moneyMetricsOf } from "#ledger/metrics.ts";
import { mils } from "#contract/mils.ts";
import { settle } from "#rollouts/settle.ts";
import { createSchedulerMetrics } from "#scheduler/metrics.ts";
import { startMoneyWatch } from "#scheduler/money-watch.ts";
import { accept, dispatch, newCustomer, succeeded } from "#test/support/ledger.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";

let database: TestDatabase;
beforeAll(async () => {
  database = await createTestDatabase();
});
afterAll(() => database.drop());

const NOTHING = {
  unsettled: 0,
  oldest_unsettled_s: 0,
  most_overdue_s: 0,
  verified_at_s: 0,
  problems: 0,
  payments_with_problem: 0,
  reconciled_at_s: 0,
  disagreements: {},
  unread_events: 0,
};

test("fresh books show nothing, and what is unsettled, overdue, verified or wrong shows up", async () => {
  const { db } = database;
  expect(await readBooks(db)).toEqual(NOTHING);

  const key = await newCustomer(db);
  const rollout = await accept(db, key, { deadline_at: new Date(Date.now() - 90_000) });
  await db.query(`UPDATE rollouts SET created_at = now() - interval '200 s'`);
  await accept(db, key);
  await db.query(`INSERT INTO ledger_checks (checked_at, problems) VALUES (to_timestamp(1000), 0), (now(), 3)`);
  await db.query(
    `INSERT INTO payments (id, paid_cents, problem) VALUES ('pi_1', 500, 'paid in eur'), ('pi_2', 500, NULL)`,
  );
  await recordReconciled(db, { at: new Date(2_000_000), disagreements: { amount_differs: 2 } });
  await db.query(
    `INSERT INTO stripe_events_unread (id, type, why, first_seen_at)
     VALUES ('evt_1', 'x', 'y', now()), ('evt_2', 'x', 'y', now()), ('evt_3', 'x', 'y', now() - interval '31 days')`,
  );
  await db.query(
    `INSERT INTO stripe_events (id, type, created_at, outcome) VALUES ('evt_2', 'x', now(), 'read later')`,
  );
  const books = await readBooks(db);
  expect(books).toMatchObject({ unsettled: 2, verified_at_s: 1000, problems: 3, payments_with_problem: 1 });
  expect(books).toMatchObject({ reconciled_at_s: 2000, disagreements: { amount_differs: 2 }, unread_events: 1 });
  expect(Math.round(books.oldest_unsettled_s / 5)).toBe(40);
  expect(Math.round(books.most_overdue_s / 5)).toBe(18);

  await dispatch(db, rollout.id);
  await settle(db, rollout.id, 1, succeeded());
  expect(await readBooks(db)).toMatchObject({ unsettled: 1, most_overdue_s: 0 });
});

test("the leader's gauges show the books, and a leader that stops shows zeros", async () => {
  const registry = new Registry();
  const metrics = createSchedulerMetrics(registry);
  const clock = { now: () => 5_000_000 };
  const watch = startMoneyWatch({ db: database.as("scheduler"), metrics, clock, log: silentLog });
  const value = async (name: string): Promise<number | undefined> =>
    (await registry.getSingleMetric(name)?.get())?.values[0]?.value;
  await expect.poll(() => value("dream_ledger_read_at_seconds")).toBe(5_000);
  expect(await value("dream_ledger_problems")).toBe(3);
  expect(await value("dream_money_unsettled_rollouts")).toBe(1);
  expect(await value("dream_money_reconciled_at_seconds")).toBe(2_000);
  expect(await value("dream_money_unread_events")).toBe(1);
  const line = /^dream_money_reconcile_disagreements\{kind="amount_differs"\} (\d+)$/m;
  expect(line.exec(await registry.metrics())?.[1]).toBe("2");
  await watch.stop();
  expect(line.exec(await registry.metrics())?.[1]).toBe("0");
  expect(await value("dream_ledger_problems")).toBe(0);
  expect(await value("dream_ledger_read_at_seconds")).toBe(0);
});

test("parts that share a registry count into the same counters, and other registries see nothing of it", async () => {
  const registry = new Registry();
  moneyMetricsOf(registry).moved("debit", mils(245));
  moneyMetricsOf(registry).moved("refund", mils(100));
  moneyMetricsOf(registry).moved("debit", mils(-5));
  moneyMetricsOf(registry).settlementFailed("error");
  const text = await registry.metrics();
  expect(text).toContain('dream_money_mils_total{kind="debit"} 250');
  expect(text).toContain('dream_money_mils_total{kind="refund"} 100');
  expect(text).toContain('dream_money_settlement_failures_total{how="error"} 1');
  const other = new Registry();
  moneyMetricsOf(other);
  expect(await other.metrics()).not.toContain("kind=");
});
