/** Who is to be told is written by whatever makes it true, in its own transaction: once, or not at all. */
import { randomUUID } from "node:crypto";

import { afterAll, beforeAll, expect, test } from "vitest";

import { accept, cancelled, dispatch, expired, failed, succeeded } from "#test/support/ledger.ts";
import type { Outcome } from "#contract/jobs.ts";
import { settle } from "#rollouts/settle.ts";
import { changeEndpoint, deleteEndpoint } from "#webhooks/endpoints.ts";
import { tellWebhooks } from "#webhooks/outbox.ts";

import { startWebhooks, type Webhooks } from "./fixture.ts";

let t: Webhooks;
beforeAll(async () => {
  t = await startWebhooks();
});
afterAll(() => t.stop());

const URL = "https://hooks.example.com/a";
const told = async (customer: Parameters<Webhooks["deliveries"]>[0]) =>
  (await t.deliveries(customer)).map(({ endpoint_id, url, event, rollout_id }) => ({
    endpoint_id,
    url,
    event,
    rollout_id,
  }));

test("an asynchronous rollout tells its webhook_url and every endpoint that asked, of that customer alone", async () => {
  const [customer, other] = [await t.customer(), await t.customer()];
  const all = await t.endpoint(customer, URL);
  const some = await t.endpoint(customer, `${URL}/b`, ["rollout.failed", "rollout.succeeded"]);
  await t.endpoint(customer, `${URL}/c`, ["rollout.failed", "dataset.completed"]);
  await t.endpoint(other, `${URL}/d`);
  const off = await t.endpoint(customer, `${URL}/e`);
  await changeEndpoint(t.db, off.id, customer.customer_id, { enabled: false });
  const gone = await t.endpoint(customer, `${URL}/f`);
  await deleteEndpoint(t.db, gone.id, customer.customer_id);

  const { id: rollout_id } = await t.ended(customer, { webhook_url: `${URL}/own` });
  const event = "rollout.succeeded";
  expect(await told(customer)).toEqual(
    expect.arrayContaining([
      { endpoint_id: null, url: `${URL}/own`, event, rollout_id },
      { endpoint_id: all.id, url: URL, event, rollout_id },
      { endpoint_id: some.id, url: `${URL}/b`, event, rollout_id },
    ]),
  );
  expect(await told(customer)).toHaveLength(3);
  expect(await told(other)).toEqual([]);
});

test.for<[string, Outcome]>([
  ["succeeded", succeeded()],
  ["failed", failed()],
  ["cancelled", cancelled],
  ["expired", expired],
])("one that ended as %s says so", async ([status, outcome]) => {
  const customer = await t.customer();
  await t.endpoint(customer, URL);
  await t.ended(customer, {}, outcome);
  expect((await told(customer)).map(({ event }) => event)).toEqual([`rollout.${status}`]);
});

test("a call that somebody waits for tells nobody, unless it named a URL; a row of a dataset never does", async () => {
  const customer = await t.customer();
  await t.endpoint(customer, URL);
  const waiter_id = randomUUID();
  await t.ended(customer, { waiter_id });
  const dataset = { id: await t.dataset(customer), row: 1 };
  await t.ended(customer, { route: "dataset", dataset });
  expect(await told(customer)).toEqual([]);

  await t.ended(customer, { waiter_id, webhook_url: `${URL}/own` });
  expect(await told(customer)).toMatchObject([{ endpoint_id: null, url: `${URL}/own` }]);
});

test("however often, and by however many at once, it is settled: each receiver has one delivery", async () => {
  const customer = await t.customer();
  await t.endpoint(customer, URL);
  await t.endpoint(customer, `${URL}/b`);
  for (let round = 0; round < 10; round++) {
    const { id } = await accept(t.db, customer, { webhook_url: `${URL}/own` });
    await dispatch(t.db, id);
    const roles = ["settlement", "gateway", "scheduler", "runner"] as const;
    const outcomes = [succeeded(), failed(), cancelled];
    const settled = await Promise.all(
      roles.flatMap((role) => outcomes.map((outcome) => settle(t.database.as(role), id, 1, outcome))),
    );
    expect(settled.filter((each) => each.settled)).toHaveLength(1);
    await settle(t.db, id, null, succeeded());
    const of = (await told(customer)).filter(({ rollout_id }) => rollout_id === id);
    expect(of.map(({ url }) => url).sort()).toEqual([URL, `${URL}/b`, `${URL}/own`]);
    expect(new Set(of.map(({ event }) => event)).size).toBe(1);
  }
});

test("the database itself refuses a second one of a rollout to the same receiver", async () => {
  const customer = await t.customer();
  const { id } = await t.ended(customer, { webhook_url: URL });
  await expect(
    t.database
      .as("settlement")
      .query(
        `INSERT INTO webhook_deliveries (customer_id, url, event, rollout_id) VALUES ($1, $2, 'rollout.succeeded', $3)`,
        [customer.customer_id, URL, id],
      ),
  ).rejects.toThrow("webhook_deliveries_once");
});

test("a rollout or dataset whose end was rolled back tells nobody", async () => {
  const customer = await t.customer();
  await t.endpoint(customer, URL);
  const { id } = await accept(t.db, customer, { webhook_url: `${URL}/own` });
  const dataset_id = await t.dataset(customer);
  await expect(
    t.database.as("runner").transaction(async (tx) => {
      await settle(tx, id, null, cancelled);
      await tellWebhooks(tx, { ...customer, event: "dataset.completed", dataset_id, webhook_url: `${URL}/own` });
      throw new Error("crashed before the commit");
    }),
  ).rejects.toThrow("crashed");
  expect(await told(customer)).toEqual([]);

  await settle(t.db, id, null, cancelled);
  expect(await told(customer)).toHaveLength(2);
});

test("a dataset tells its webhook_url and the endpoints that asked, each time", async () => {
  const customer = await t.customer();
  const endpoint = await t.endpoint(customer, URL, ["dataset.paused"]);
  const dataset_id = await t.dataset(customer);
  const news = { ...customer, dataset_id, webhook_url: `${URL}/own` };
  const runner = t.database.as("runner");
  await tellWebhooks(runner, { ...news, event: "dataset.paused" });
  await tellWebhooks(runner, { ...news, event: "dataset.paused" });
  await tellWebhooks(runner, { ...news, event: "dataset.completed" });
  await tellWebhooks(runner, { ...news, webhook_url: null, event: "dataset.completed" });
  const deliveries = await t.deliveries(customer);
  expect(deliveries.map(({ endpoint_id, event }) => `${endpoint_id} ${event}`).sort()).toEqual([
    `${endpoint.id} dataset.paused`,
    `${endpoint.id} dataset.paused`,
    "null dataset.completed",
    "null dataset.paused",
    "null dataset.paused",
  ]);
});

test("a URL of any length and any letters ends no rollout badly", async () => {
  const customer = await t.customer();
  for (const webhook_url of [
    `https://${"ü".repeat(1_900)}.example.com/`,
    "nonsense",
    `https://x/${"😀".repeat(900)}`,
  ]) {
    await t.ended(customer, { webhook_url });
  }
  expect((await told(customer)).map(({ event }) => event)).toEqual(Array(3).fill("rollout.succeeded"));
});
