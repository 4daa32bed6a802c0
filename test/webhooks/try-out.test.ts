/** A customer tries an endpoint: what the receiver gets, what is said of it, and what it must not change. */
import { Webhook } from "standardwebhooks";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";

import { createLocalRateLimiter } from "#gateway/rate-limiter-local.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { systemClock } from "#platform/clock.ts";
import type { Service } from "#platform/lifecycle.ts";
import { startTestGateway, type TestGateway } from "#test/gateway/support/test-gateway.ts";
import { answers, type Behaviour, type Receiver, startReceiver } from "#test/support/receiver.ts";

import { until } from "./fixture.ts";
import { startNotifierBeside } from "./gateway-notifier.ts";

vi.setConfig({ testTimeout: 60_000 });

interface Delivery {
  readonly id: string;
  readonly state: string;
  readonly attempts: number;
}

let t: TestGateway;
let notifier: Service;
beforeAll(async () => {
  t = await startTestGateway({
    config: { OUTBOUND_PRIVATE: "on" },
    rateLimiter: createLocalRateLimiter(systemClock),
  });
  notifier = await startNotifierBeside(t, 500);
});
afterAll(async () => {
  await notifier.stop();
  await t.stop();
});
const receivers: Receiver[] = [];
afterEach(async () => {
  for (const receiver of receivers.splice(0)) await receiver.stop();
});

async function receiver(behaviour: Behaviour): Promise<Receiver> {
  const started = await startReceiver(behaviour);
  receivers.push(started);
  return started;
}

const call = async (key: CreatedKey, method: "GET" | "POST" | "PATCH" | "DELETE", url: string, payload?: object) => {
  const headers = { authorization: `Bearer ${key.api_key}` };
  const answer = await t.app.inject({ method, url, headers, ...(payload && { payload }) });
  return { status: answer.statusCode, body: answer.json() };
};

async function endpoint(key: CreatedKey, url: string) {
  const { status, body } = await call(key, "POST", "/v1/webhooks", { url, events: ["dataset.paused"] });
  expect(status).toBe(201);
  return body as { id: string; secret: string };
}

/** As the log shows it once it has ended. */
const ended = (key: CreatedKey, { id }: Delivery) =>
  until(async () => {
    const { body } = await call(key, "GET", `/v1/webhooks/deliveries/${id}`);
    return body.state !== "pending" && body;
  });

test("the receiver gets the webhook itself, signed, whatever it subscribed to; the log has it as any other", async () => {
  const { url, received } = await receiver(answers(204));
  const key = await t.newKey();
  const { secret, ...webhook } = await endpoint(key, `${url}/hook`);
  const asked = await call(key, "POST", `/v1/webhooks/${webhook.id}/test`);
  const about = { endpoint: webhook.id, event: "webhook.test", rollout: null, dataset: null };
  expect(asked).toMatchObject({ status: 202, body: { ...about, object: "webhook_delivery", attempts: 0 } });

  const delivery = await ended(key, asked.body);
  expect(delivery).toMatchObject({
    ...about,
    state: "delivered",
    attempts: 1,
    last_status: 204,
    last_error: null,
    log: [{ n: 1, status: 204, error: null }],
  });
  expect(received).toHaveLength(1);
  const [{ body, headers }] = received as [Receiver["received"][number]];
  expect(headers["webhook-id"]).toBe(delivery.id);
  const message = new Webhook(secret).verify(body, headers) as { type: string; timestamp: string };
  expect(message).toEqual({ type: "webhook.test", timestamp: expect.any(String), data: webhook });
  expect(Math.abs(Date.parse(message.timestamp) / 1000 - delivery.created)).toBeLessThan(1);
  expect(() => new Webhook(secret).verify(`${body} `, headers)).toThrow("No matching signature");
  expect((await call(key, "GET", `/v1/webhooks/deliveries?endpoint=${webhook.id}`)).body.data).toMatchObject([
    { id: delivery.id, last_status: 204 },
  ]);

  // Each is a delivery of its own, and one of them can be sent again.
  const second = await call(key, "POST", `/v1/webhooks/${webhook.id}/test`);
  await ended(key, second.body);
  expect((await call(key, "POST", `/v1/webhooks/deliveries/${delivery.id}/resend`)).status).toBe(202);
  await until(() => received.length === 3);
  const ids = received.map((each) => each.headers["webhook-id"]);
  expect(ids).toEqual([delivery.id, second.body.id, delivery.id]);
});

test.for<[string, Behaviour, object]>([
  ["answers 500", answers(500), { last_status: 500, last_error: null, reason: "a test is sent once" }],
  [
    "asks to come back later",
    (response) => response.writeHead(503, { "retry-after": "60" }).end(),
    { last_status: 503, reason: "a test is sent once" },
  ],
  [
    "does not answer",
    () => undefined,
    {
      last_status: null,
      last_error: expect.stringMatching(/no complete answer within/),
      reason: "a test is sent once",
    },
  ],
  ["is gone", answers(410), { last_status: 410, reason: "its receiver answered 410 Gone" }],
])("one that %s is told so after one attempt, and stays enabled", async ([, behaviour, outcome]) => {
  const { url, received } = await receiver(behaviour);
  const key = await t.newKey();
  const { id } = await endpoint(key, url);
  const { body } = await call(key, "POST", `/v1/webhooks/${id}/test`);
  expect(await ended(key, body)).toMatchObject({ state: "failed", attempts: 1, ...outcome });
  expect(received).toHaveLength(1);
  expect((await call(key, "GET", `/v1/webhooks/${id}`)).body).toMatchObject({ enabled: true, disabled_reason: null });
});

test("one that nobody listens for is told so", async () => {
  const closed = await receiver(answers(200));
  await closed.stop();
  receivers.pop();
  const key = await t.newKey();
  const { id } = await endpoint(key, closed.url);
  const { body } = await call(key, "POST", `/v1/webhooks/${id}/test`);
  expect(await ended(key, body)).toMatchObject({ state: "failed", last_status: null, last_error: expect.any(String) });
});

test("a disabled one is refused and says so; a deleted one, and another customer's, is not there", async () => {
  const { url, received } = await receiver(answers(200));
  const [key, other] = [await t.newKey(), await t.newKey()];
  const { id } = await endpoint(key, url);
  const path = `/v1/webhooks/${id}/test`;
  expect(await call(other, "POST", path)).toMatchObject({
    status: 404,
    body: { error: { code: "webhook_not_found" } },
  });
  expect((await t.app.inject({ method: "POST", url: path })).statusCode).toBe(401);
  expect((await call(key, "POST", "/v1/webhooks/endpoint_1/test")).status).toBe(404);

  await call(key, "PATCH", `/v1/webhooks/${id}`, { enabled: false });
  expect(await call(key, "POST", path)).toMatchObject({
    status: 409,
    body: { error: { code: "wrong_state", message: expect.stringMatching(/is disabled \(by its owner\): PATCH/) } },
  });
  await call(key, "PATCH", `/v1/webhooks/${id}`, { enabled: true });
  const { status, body } = await call(key, "POST", path);
  expect([status, (await ended(key, body)).state]).toEqual([202, "delivered"]);
  await call(key, "DELETE", `/v1/webhooks/${id}`);
  expect((await call(key, "POST", path)).status).toBe(404);
  expect(received).toHaveLength(1);
  expect((await call(key, "GET", "/v1/webhooks/deliveries")).body.data).toHaveLength(1);
});

test("nobody subscribes to tests, and no other delivery is without a rollout or dataset", async () => {
  const key = await t.newKey();
  const answer = await call(key, "POST", "/v1/webhooks", { url: "https://h.example.com/", events: ["webhook.test"] });
  expect(answer.status).toBe(422);
  const { id } = await endpoint(key, "https://h.example.com/");
  const insert = (event: string, endpoint_id: string | null) =>
    t
      .as("gateway")
      .query(
        "INSERT INTO webhook_deliveries (customer_id, endpoint_id, url, event) VALUES ($1, $2, 'https://h.example.com/', $3)",
        [key.customer_id, endpoint_id, event],
      );
  await expect(insert("rollout.failed", id)).rejects.toThrow("check constraint");
  await expect(insert("webhook.test", null)).rejects.toThrow("check constraint");
});

test("the rate of calls bounds tests as it bounds everything", async () => {
  const { url, received } = await receiver(answers(200));
  const key = await t.newKey(undefined, { rate_per_s: 1, burst: 3 });
  const { id } = await endpoint(key, url);
  const statuses: number[] = [];
  for (let i = 0; i < 6; i++) statuses.push((await call(key, "POST", `/v1/webhooks/${id}/test`)).status);
  expect(statuses).toContain(429);
  const sent = statuses.filter((status) => status === 202).length;
  expect(sent).toBeLessThan(6);
  await until(() => received.length === sent);
});
