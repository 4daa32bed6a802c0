/** What receivers get, and what becomes of a delivery when they behave badly. */
import { Registry } from "prom-client";
import { Webhook } from "standardwebhooks";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";

import { createOutbound } from "#platform/outbound.ts";
import { failed } from "#test/support/ledger.ts";
import { answers, type Behaviour, type Receiver, startReceiver, startTcpReceiver } from "#test/support/receiver.ts";
import { rotateCustomerSigning } from "#webhooks/customer-signing.ts";
import { changeEndpoint, deleteEndpoint, findEndpoint, rotateEndpoint } from "#webhooks/endpoints.ts";
import { type Delivery, findDelivery, resendDelivery } from "#webhooks/log.ts";
import { tellWebhooks } from "#webhooks/outbox.ts";
import { secretText, webhookRoot } from "#webhooks/secrets.ts";
import { NOTIFIER_BOUNDS } from "#workers/notifier/notifier.ts";

import { type Customer, PUBLIC_URL, startWebhooks, until, type Webhooks } from "./fixture.ts";

vi.setConfig({ testTimeout: 60_000 });

let t: Webhooks;
beforeAll(async () => {
  t = await startWebhooks();
});
afterAll(() => t.stop());
const stops: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const stop of stops.splice(0).toReversed()) await stop();
});

async function receiver(behaviour: Behaviour = answers(200)): Promise<Receiver> {
  const started = await startReceiver(behaviour);
  stops.push(() => started.stop());
  return started;
}

async function notifier(overrides?: Parameters<Webhooks["notifier"]>[0]) {
  const started = await t.notifier(overrides);
  stops.push(() => started.stop());
  return started;
}

/** The customer's only delivery, once it is as wanted. */
const deliveryThat = (customer: Customer, is: (delivery: Delivery) => boolean) =>
  until(async () => {
    const [delivery, ...others] = await t.deliveries(customer);
    expect(others).toEqual([]);
    return delivery !== undefined && is(delivery) && delivery;
  });
/** After its n-th attempt has failed and before the next. */
const waitsAfter = (n: number) => (delivery: Delivery) =>
  delivery.state === "pending" &&
  delivery.attempts === n &&
  !delivery.sending &&
  delivery.next_attempt_at.getTime() > Date.now() + 1_000;

function firstOf<T>(all: readonly T[]): T {
  const [first] = all;
  if (first === undefined) throw new Error("expected one at least, got none");
  return first;
}

async function secretOf(signer: Parameters<typeof secretText>[1], generation = 1): Promise<string> {
  return secretText(await webhookRoot(t.database.as("gateway"), () => Buffer.alloc(32)), signer, { generation });
}

test("an endpoint gets the rollout's envelope, signed, as the receiver's library verifies it", async () => {
  const { url, received } = await receiver();
  const customer = await t.customer();
  const endpoint = await t.endpoint(customer, `${url}/hook?token=1`);
  await notifier();
  const rollout = await t.ended(customer, {
    params: { seed: "18446744073709551615", num_steps: 8, guidance: 0, prompt: "ü" },
  });
  const delivery = await deliveryThat(customer, ({ state }) => state === "delivered");

  const request = firstOf(received);
  expect(request).toMatchObject({
    method: "POST",
    url: "/hook?token=1",
    headers: { "content-type": "application/json", "webhook-id": delivery.id, "user-agent": "dream-engine-webhooks" },
  });
  const { body, headers } = request;
  const secret = await secretOf({ kind: "endpoint", id: endpoint.id });
  const message = new Webhook(secret).verify(body, headers);
  expect(message).toMatchObject({
    type: "rollout.succeeded",
    timestamp: delivery.created_at.toISOString(),
    data: { id: rollout.id, object: "rollout", status: "succeeded", mode: "async", charged_mils: 245 },
  });
  expect(body).toContain('"seed":18446744073709551615'); // to the last digit
  const { video_url } = (message as { data: { video_url: string } }).data;
  expect(video_url).toMatch(new RegExp(`^${PUBLIC_URL}/v1/rollouts/${rollout.id}/video\\?candidate=0&expires=`));
  expect(await t.attempts(delivery)).toMatchObject([{ n: 1, status: 200, error: null, excerpt: "thanks" }]);
});

test("a webhook_url is signed with the customer's own secret, and a failure brings its reason and no video", async () => {
  const { url, received } = await receiver();
  const customer = await t.customer();
  await notifier({ publicUrl: null });
  await t.ended(customer, { webhook_url: url }, failed());
  await deliveryThat(customer, ({ state }) => state === "delivered");
  const { body, headers } = firstOf(received);
  const secret = await secretOf({ kind: "customer", id: customer.customer_id });
  expect(new Webhook(secret).verify(body, headers)).toMatchObject({
    type: "rollout.failed",
    data: { error: { code: "engine_failed" }, video_url: null, refunded_mils: 245, cost_mils: 0 },
  });
});

test("where nobody said what links begin with, there are none", async () => {
  const { url, received } = await receiver();
  const customer = await t.customer();
  await notifier({ publicUrl: null });
  await t.ended(customer, { webhook_url: url });
  await deliveryThat(customer, ({ state }) => state === "delivered");
  expect(JSON.parse(received[0]?.body ?? "")).toMatchObject({ data: { video_url: null, video_urls: [] } });
});

test("a dataset's webhook brings the dataset", async () => {
  const { url, received } = await receiver();
  const customer = await t.customer();
  const dataset_id = await t.dataset(customer);
  await tellWebhooks(t.database.as("runner"), {
    ...customer,
    event: "dataset.completed",
    dataset_id,
    webhook_url: url,
  });
  await notifier();
  await deliveryThat(customer, ({ state }) => state === "delivered");
  expect(JSON.parse(received[0]?.body ?? "")).toMatchObject({
    type: "dataset.completed",
    data: {
      id: dataset_id,
      object: "dataset",
      state: "completed",
      results: { jsonl: `${PUBLIC_URL}/v1/datasets/${dataset_id}/results?format=jsonl` },
    },
  });
});

test("a 500 is tried again under the same id, signed anew, and then taken", async () => {
  const { url, received } = await receiver(answers(500, 200));
  const customer = await t.customer();
  await t.endpoint(customer, url);
  await notifier();
  await t.ended(customer);
  const failedOnce = await deliveryThat(customer, waitsAfter(1));
  const delayMs = failedOnce.next_attempt_at.getTime() - Date.now();
  expect(delayMs).toBeGreaterThan(2_000);
  expect(delayMs).toBeLessThan(5_600);
  await t.dueNow();
  const delivery = await deliveryThat(customer, ({ state }) => state === "delivered");
  expect(delivery.attempts).toBe(2);
  expect(received.map(({ headers }) => headers["webhook-id"])).toEqual([delivery.id, delivery.id]);
  expect((await t.attempts(delivery)).map(({ n, status }) => [n, status])).toEqual([
    [1, 500],
    [2, 200],
  ]);
});

test("ten failures are the end", async () => {
  const { url, received } = await receiver(answers(503));
  const customer = await t.customer();
  await t.endpoint(customer, url);
  await notifier();
  await t.ended(customer);
  for (let attempt = 1; attempt < 10; attempt++) {
    await deliveryThat(customer, waitsAfter(attempt));
    await t.dueNow();
  }
  const delivery = await deliveryThat(customer, ({ state }) => state === "failed");
  expect(delivery).toMatchObject({ attempts: 10, reason: "given up after 10 attempts" });
  expect(received).toHaveLength(10);
  expect(await t.attempts(delivery)).toHaveLength(10);
});

test("a redirect is a failure, and what it leads to is not asked", async () => {
  const inside = await receiver();
  const { url } = await receiver((response) => response.writeHead(302, { location: `${inside.url}/secret` }).end());
  const customer = await t.customer();
  await t.endpoint(customer, url);
  await notifier();
  await t.ended(customer);
  const delivery = await deliveryThat(customer, waitsAfter(1));
  expect(await t.attempts(delivery)).toMatchObject([{ status: 302 }]);
  expect(inside.received).toEqual([]);
});

test("410 disables an endpoint and ends what waits for it; of a webhook_url it ends this one delivery", async () => {
  const { url, received } = await receiver(answers(410));
  const customer = await t.customer();
  const endpoint = await t.endpoint(customer, url);
  await t.ended(customer);
  await t.ended(customer, { webhook_url: url });
  const before = await t.deliveries(customer);
  // Further on in its schedule; due long after the first answer.
  await t.db.query("UPDATE webhook_deliveries SET next_attempt_at = now() + interval '1 h' WHERE id = $1", [
    before.findLast(({ endpoint_id }) => endpoint_id !== null)?.id,
  ]);
  await notifier();
  const ended = await until(async () => {
    const all = await t.deliveries(customer);
    return all.every(({ state }) => state === "failed") && all;
  });
  expect(ended.map(({ reason }) => String(reason)).sort()).toEqual([
    "its receiver answered 410 Gone",
    "its receiver answered 410 Gone",
    "its webhook was disabled",
  ]);
  expect(received).toHaveLength(2);
  expect(await findEndpoint(t.db, endpoint.id, customer.customer_id)).toMatchObject({
    disabled_at: expect.any(Date),
    disabled_reason: "its receiver answered 410 Gone",
  });
  // Nothing more is written for it.
  await t.ended(customer);
  expect(await t.deliveries(customer)).toHaveLength(3);
});

test("a 410 of a URL that was replaced meanwhile does not disable the endpoint", async () => {
  const customer = await t.customer();
  const { url } = await receiver((response) => {
    void changeEndpoint(t.db, endpoint.id, customer.customer_id, { url: `${url}/new` }).then(() =>
      response.writeHead(410).end(),
    );
  });
  const endpoint = await t.endpoint(customer, url);
  await notifier();
  await t.ended(customer);
  await deliveryThat(customer, ({ state }) => state === "failed");
  expect(await findEndpoint(t.db, endpoint.id, customer.customer_id)).toMatchObject({ disabled_at: null });
});

test("Retry-After of a 429 puts the next attempt off", async () => {
  const { url } = await receiver((response) => response.writeHead(429, { "retry-after": "3600" }).end());
  const customer = await t.customer();
  await t.endpoint(customer, url);
  await notifier();
  await t.ended(customer);
  const delivery = await deliveryThat(customer, waitsAfter(1));
  const inS = (delivery.next_attempt_at.getTime() - Date.now()) / 1000;
  expect(inS).toBeGreaterThan(3_590);
  expect(inS).toBeLessThan(3_601);
});

test.for<[string, Behaviour, RegExp]>([
  ["hangs", () => undefined, /no complete answer within 0.5 s/],
  [
    "drips its answer",
    (response) => {
      response.writeHead(200).flushHeaders();
      const drip = setInterval(() => response.write("."), 50);
      response.on("close", () => clearInterval(drip));
    },
    /no complete answer within 0.5 s/,
  ],
  ["closes at once", (response) => response.destroy(), /closed before the answer was complete/],
  [
    "promises more than it sends",
    (response) => {
      response.writeHead(200, { "content-length": "1000" }).write("short");
      setTimeout(() => response.destroy(), 20);
    },
    /closed before the answer was complete/,
  ],
  ["answers garbage", (response) => response.socket?.end("\0\u0001garbage\r\n\r\n"), /not HTTP/],
])("a receiver that %s gets it again later, and the log says why", async ([, behaviour, error]) => {
  const { url } = await receiver(behaviour);
  const customer = await t.customer();
  await t.endpoint(customer, url);
  await notifier({ bounds: { ...NOTIFIER_BOUNDS, timeoutMs: 500 } });
  await t.ended(customer);
  const delivery = await deliveryThat(customer, waitsAfter(1));
  const [attempt] = await t.attempts(delivery);
  expect(attempt).toMatchObject({ n: 1, status: null, error: expect.stringMatching(error) });
});

test("a huge answer is read up to a kilobyte, and shown as text", async () => {
  const { url } = await receiver((response) => response.end(`\0\u001b[2J${"x".repeat(5_000_000)}`));
  const customer = await t.customer();
  await t.endpoint(customer, url);
  await notifier();
  await t.ended(customer);
  const delivery = await deliveryThat(customer, ({ state }) => state === "delivered");
  const { excerpt } = firstOf(await t.attempts(delivery));
  expect(excerpt).toMatch(/^\[2Jx+$/);
  expect(excerpt?.length).toBeLessThanOrEqual(1024);
});

test("private addresses get nothing unless the operator allows it, whatever the URL was when it was made", async () => {
  const { port, received } = await receiver();
  const rebound = await t.customer();
  await t.endpoint(rebound, `http://hooks.test:${port}/`); // its name led elsewhere then
  const literal = await t.customer();
  await t.endpoint(literal, `http://127.0.0.1:${port}/`); // made while it was allowed
  await notifier({ outbound: createOutbound({ allowPrivate: false, lookup: async () => ["127.0.0.1"] }) });
  await t.ended(rebound);
  await t.ended(literal);
  for (const customer of [rebound, literal]) {
    const delivery = await deliveryThat(customer, waitsAfter(1));
    const [attempt] = await t.attempts(delivery);
    expect(attempt?.error).toMatch(/is not an address in the public internet/);
  }
  expect(received).toEqual([]);
});

test("both secrets sign after a rotation, of an endpoint as of the customer", async () => {
  const { url, received } = await receiver();
  const customer = await t.customer();
  const endpoint = await t.endpoint(customer, url);
  const now = new Date();
  await rotateEndpoint(t.database.as("gateway"), endpoint.id, customer.customer_id, now);
  await rotateCustomerSigning(t.database.as("gateway"), customer.customer_id, now);
  await notifier();
  await t.ended(customer, { webhook_url: url });
  await until(async () => (await t.deliveries(customer)).every(({ state }) => state === "delivered"));
  expect(received).toHaveLength(2);
  const deliveries = await t.deliveries(customer);
  for (const { body, headers } of received) {
    const own = deliveries.find(({ id }) => id === headers["webhook-id"])?.endpoint_id === null;
    const signer = own
      ? ({ kind: "customer", id: customer.customer_id } as const)
      : ({ kind: "endpoint", id: endpoint.id } as const);
    for (const generation of [1, 2]) {
      new Webhook(await secretOf(signer, generation)).verify(body, headers);
    }
    const third = await secretOf(signer, 3);
    expect(() => new Webhook(third).verify(body, headers)).toThrow("No matching signature");
  }
});

test("what waited for an endpoint goes to the URL that it has now, and nowhere once it is deleted or disabled", async () => {
  const [old, fresh] = [await receiver(answers(500)), await receiver()];
  const customer = await t.customer();
  const gateway = t.database.as("gateway");
  const endpoint = await t.endpoint(customer, old.url);
  await notifier();
  await t.ended(customer);
  await deliveryThat(customer, waitsAfter(1));
  await changeEndpoint(gateway, endpoint.id, customer.customer_id, { url: fresh.url });
  await t.dueNow();
  await deliveryThat(customer, ({ state }) => state === "delivered");
  expect([old.received.length, fresh.received.length]).toEqual([1, 1]);

  for (const end of ["disabled", "deleted"] as const) {
    const other = await t.customer();
    const its = await t.endpoint(other, old.url);
    await t.ended(other);
    await deliveryThat(other, waitsAfter(1));
    if (end === "deleted") await deleteEndpoint(gateway, its.id, other.customer_id);
    else await changeEndpoint(gateway, its.id, other.customer_id, { enabled: false });
    expect(await t.deliveries(other)).toMatchObject([{ state: "failed", reason: `its webhook was ${end}` }]);
    const { id } = firstOf(await t.deliveries(other));
    await expect(resendDelivery(gateway, id, other.customer_id)).rejects.toThrow(end);
  }
});

test("a resend goes out at once, of one that was taken, that failed, that waits, and after the one under way", async () => {
  const held: (() => void)[] = [];
  const { url, received } = await receiver((response, nth) => {
    if (nth === 2) held.push(() => response.end());
    else response.writeHead(nth === 0 ? 500 : 200).end();
  });
  const customer = await t.customer();
  const gateway = t.database.as("gateway");
  await t.endpoint(customer, url);
  await notifier({ bounds: { ...NOTIFIER_BOUNDS, timeoutMs: 10_000 } });
  await t.ended(customer);
  const { id } = await deliveryThat(customer, waitsAfter(1));
  const resend = () => resendDelivery(gateway, id, customer.customer_id);

  await resend(); // it waits for its retry
  await deliveryThat(customer, ({ state, attempts }) => state === "delivered" && attempts === 2);
  await resend(); // it was taken
  await until(() => held.length === 1);
  expect(await resend()).toMatchObject({ state: "pending", attempts: 3 }); // it is being sent
  await resend(); // and again: still one more
  for (const answer of held) answer();
  const delivery = await deliveryThat(customer, ({ state, attempts }) => state === "delivered" && attempts === 4);
  await expect.poll(() => t.attempts(delivery)).toHaveLength(4);
  expect(new Set(received.map(({ headers }) => headers["webhook-id"]))).toEqual(new Set([id]));
  expect(received).toHaveLength(4);
});

test("a resend of one that was given up has all its retries before it again", async () => {
  const { url } = await receiver(answers(410, 500));
  const customer = await t.customer();
  await notifier();
  await t.ended(customer, { webhook_url: url });
  const { id } = await deliveryThat(customer, ({ state }) => state === "failed");
  await t.db.query("UPDATE webhook_deliveries SET attempts = 10 WHERE id = $1", [id]);
  await resendDelivery(t.database.as("gateway"), id, customer.customer_id);
  const again = await deliveryThat(customer, waitsAfter(11));
  expect(again.next_attempt_at.getTime() - Date.now()).toBeLessThan(5_600);
  expect(await findDelivery(t.db, id, customer.customer_id)).toMatchObject({ state: "pending", reason: null });
});

test("one receiver that hangs, with many messages waiting for it, does not hold up the others, nor its customer's others", async () => {
  const hangs = await receiver(() => undefined);
  const works = await receiver();
  const [customer, other] = [await t.customer(), await t.customer()];
  for (let i = 0; i < 40; i++) await t.ended(customer, { webhook_url: hangs.url });
  await t.ended(customer, { webhook_url: works.url });
  await t.ended(other, { webhook_url: works.url });
  await notifier({ bounds: { ...NOTIFIER_BOUNDS, concurrency: 8, timeoutMs: 10_000, graceMs: 100 } });
  await until(() => works.received.length === 2);
  await until(() => hangs.open() === NOTIFIER_BOUNDS.perRoute);
  expect(hangs.openMax()).toBe(NOTIFIER_BOUNDS.perRoute);
});

test("one customer whose many receivers all hang leaves room for another customer", async () => {
  const silent = await startTcpReceiver(() => undefined);
  stops.push(() => silent.stop());
  const works = await receiver();
  const [customer, other] = [await t.customer(), await t.customer()];
  for (let i = 0; i < 30; i++) await t.ended(customer, { webhook_url: `http://127.0.0.${i + 1}:${silent.port}/` });
  await t.ended(other, { webhook_url: works.url });
  await notifier({
    outbound: createOutbound({ allowPrivate: true, lookup: async () => ["127.0.0.1"] }),
    bounds: { ...NOTIFIER_BOUNDS, concurrency: 6, perCustomer: 4, timeoutMs: 10_000, graceMs: 100 },
  });
  await until(() => works.received.length === 1);
  expect(silent.connections()).toBeLessThanOrEqual(4);
});

test("counts what it sends by answer, and what ends by outcome", async () => {
  const registry = new Registry();
  const { url } = await receiver(answers(500, 200));
  const customer = await t.customer();
  await t.endpoint(customer, url);
  const started = await notifier({ registry });
  await t.ended(customer);
  await deliveryThat(customer, waitsAfter(1));
  await t.dueNow();
  await deliveryThat(customer, ({ state }) => state === "delivered");
  await started.stop();
  const text = await registry.metrics();
  expect(text).toContain('dream_webhook_attempts_total{answer="5xx"} 1');
  expect(text).toContain('dream_webhook_attempts_total{answer="2xx"} 1');
  expect(text).toContain('dream_webhook_deliveries_total{outcome="delivered"} 1');
});
