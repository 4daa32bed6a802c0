/** What the leader does with webhooks: it deletes the old log and shows what waits. */
import { Registry } from "prom-client";
import { afterAll, beforeAll, expect, test } from "vitest";

import { systemClock } from "#platform/clock.ts";
import { tryLead } from "#rollouts/leader.ts";
import { createSchedulerMetrics } from "#scheduler/metrics.ts";
import { DELIVERIES_KEPT_MS, startWebhookSweep, sweepWebhooks } from "#scheduler/sweep/webhooks.ts";
import { silentLog } from "#test/support/postgres.ts";
import { startWebhooks, until, type Webhooks } from "#test/webhooks/fixture.ts";
import { deleteEndpoint } from "#webhooks/endpoints.ts";

let t: Webhooks;
beforeAll(async () => {
  t = await startWebhooks();
});
afterAll(() => t.stop());

const URL = "https://hooks.example.com/";
const ageAll = (id: string, days: number) =>
  t.db.query("UPDATE webhook_deliveries SET created_at = now() - $2 * interval '1 day' WHERE rollout_id = $1", [
    id,
    days,
  ]);
const endAll = (id: string) =>
  t.db.query("UPDATE webhook_deliveries SET state = 'delivered', finished_at = now() WHERE rollout_id = $1", [id]);

test("what ended and is older than 30 days goes, with its attempts; what waits stays; an old term deletes nothing", async () => {
  const db = t.database.as("scheduler");
  const customer = await t.customer();
  const endpoint = await t.endpoint(customer, URL);
  const [old, waits, young] = [await t.ended(customer), await t.ended(customer), await t.ended(customer)];
  await endAll(old.id);
  await endAll(young.id);
  await ageAll(old.id, 31);
  await ageAll(waits.id, 31);
  await ageAll(young.id, 29);
  await t.db.query(
    `INSERT INTO webhook_attempts (delivery_id, n, at, duration_ms, status)
     SELECT id, 1, now(), 1, 200 FROM webhook_deliveries`,
  );
  await deleteEndpoint(t.db, endpoint.id, customer.customer_id);
  await t.db.query("UPDATE webhook_endpoints SET deleted_at = now() - interval '31 days'");
  await t.db.query(
    "UPDATE webhook_deliveries SET state = 'pending', reason = NULL, finished_at = NULL WHERE rollout_id = $1",
    [waits.id],
  );

  const leadership = await tryLead(db, "test");
  if (!leadership) throw new Error("nobody else leads");
  const metrics = createSchedulerMetrics(new Registry());
  const { epoch } = leadership;
  const round = (term: bigint, clock = systemClock) => sweepWebhooks({ db, epoch: term, clock, metrics });
  const left = async () => (await t.deliveries(customer)).map(({ rollout_id }) => String(rollout_id)).sort();
  const endpoints = () => t.db.query("SELECT FROM webhook_endpoints");

  expect(await round(epoch - 1n)).toBe(0);
  expect(await left()).toHaveLength(3);
  expect(await round(epoch)).toBe(1);
  expect(await left()).toEqual([waits.id, young.id].sort());
  expect(await t.db.query("SELECT FROM webhook_attempts")).toHaveLength(2);
  expect(await endpoints()).toHaveLength(1); // the log has something of it

  await endAll(waits.id);
  const later = { now: () => Date.now() + DELIVERIES_KEPT_MS };
  expect(await round(epoch, later)).toBe(2);
  expect(await endpoints()).toHaveLength(0);
  await leadership.resign();
});

test("shows how many wait and how late the oldest is, and nothing once it leads no more", async () => {
  const customer = await t.customer();
  const { id } = await t.ended(customer, { webhook_url: URL });
  await t.ended(customer, { webhook_url: URL });
  await t.db.query("UPDATE webhook_deliveries SET next_attempt_at = now() + interval '1 h' WHERE rollout_id <> $1", [
    id,
  ]);
  await t.db.query("UPDATE webhook_deliveries SET next_attempt_at = now() - interval '90 s' WHERE rollout_id = $1", [
    id,
  ]);
  const registry = new Registry();
  const metrics = createSchedulerMetrics(registry);
  const db = t.database.as("scheduler");
  const sweep = startWebhookSweep({ db, epoch: 1n, clock: systemClock, metrics, log: silentLog });
  const value = async (name: string): Promise<number> =>
    Number(new RegExp(`^${name} (.*)$`, "m").exec(await registry.metrics())?.[1]);
  await until(async () => (await value("dream_webhooks_pending")) === 2);
  const late = await value("dream_webhooks_oldest_due_age_seconds");
  expect(late).toBeGreaterThan(89);
  expect(late).toBeLessThan(120);
  await sweep.stop();
  expect(await value("dream_webhooks_pending")).toBe(0);
  expect(await value("dream_webhooks_oldest_due_age_seconds")).toBe(0);
});
