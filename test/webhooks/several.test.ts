/** Several notifiers on one table, and one that dies: nothing is sent twice at once, and nothing is forgotten. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";

import type { CustomerId } from "#contract/ids.ts";
import { answers, type Behaviour, startReceiver } from "#test/support/receiver.ts";
import { type Claimed, claimDue, type ClaimLimits, noteAttempt, ROUTES_PER_CLAIM } from "#webhooks/deliveries.ts";
import { resendDelivery } from "#webhooks/log.ts";
import { NOTIFIER_BOUNDS } from "#workers/notifier/notifier.ts";

import { startWebhooks, until, type Webhooks } from "./fixture.ts";

vi.setConfig({ testTimeout: 60_000 });

let t: Webhooks;
beforeAll(async () => {
  t = await startWebhooks();
});
afterAll(() => t.stop());
const stops: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const stop of stops.splice(0).toReversed()) await stop();
  await t.db.query("DELETE FROM webhook_deliveries");
});

async function receiver(behaviour: Behaviour = answers(200)) {
  const started = await startReceiver(behaviour);
  stops.push(() => started.stop());
  return started;
}

const LIMITS: ClaimLimits = {
  count: 100,
  perRoute: 100,
  perReceiver: 100,
  perCustomer: 100,
  leaseMs: 60_000,
  inHand: [],
  after: null,
};
const claim = async (limits: Partial<ClaimLimits> = {}) =>
  claimDue(t.database.as("notifier"), { ...LIMITS, ...limits });
const delivered = { state: "delivered" } as const;
const answered = (status: number) => ({ at: new Date(), duration_ms: 1, answer: { status, excerpt: "" } });
const note = (one: Claimed, status: number, next: Parameters<typeof noteAttempt>[3]) =>
  t.database.as("notifier").transaction((tx) => noteAttempt(tx, one, answered(status), next));

test("three notifiers share the work and send each delivery once", async () => {
  const { url, received } = await receiver((response) => setTimeout(() => response.end(), 5));
  const customers = await Promise.all([1, 2, 3].map(() => t.customer()));
  for (let i = 0; i < 120; i++) {
    const customer = customers[i % 3];
    if (customer) await t.ended(customer, { webhook_url: url });
  }
  for (let i = 0; i < 3; i++) {
    const notifier = await t.notifier();
    stops.push(() => notifier.stop());
  }
  await until(async () =>
    (await Promise.all(customers.map((each) => t.deliveries(each)))).flat().every(({ state }) => state === "delivered"),
  );
  const ids = received.map(({ headers }) => headers["webhook-id"]);
  expect(ids).toHaveLength(120);
  expect(new Set(ids).size).toBe(120);
});

test("claims that run at the same time never have a delivery in common, and none is left out", async () => {
  const customer = await t.customer();
  for (let i = 0; i < 60; i++) await t.ended(customer, { webhook_url: `https://receiver-${i % 7}.example.com/` });
  const claims = await Promise.all(Array.from({ length: 12 }, () => claim({ count: 10 })));
  const rest = await claim();
  const ids = [...claims, rest].flatMap(({ deliveries }) => deliveries.map(({ id }) => id));
  expect(ids).toHaveLength(60);
  expect(new Set(ids).size).toBe(60);
  expect((await claim()).deliveries).toEqual([]); // all are in somebody's hands
});

const held = (customer_id: CustomerId, receiver: string, count: number) =>
  Array.from({ length: count }, () => ({ customer_id, receiver }));

test("a claim gives each its share, counting what is in hand, and the first places before the second ones", async () => {
  const [one, other, third] = [await t.customer(), await t.customer(), await t.customer()];
  for (let i = 0; i < 10; i++) {
    await t.ended(one, { webhook_url: "https://a.example.com/x" });
    await t.ended(one, { webhook_url: "https://b.example.com:8443/" });
    await t.ended(other, { webhook_url: "https://A.example.com/y" });
  }
  await t.ended(third, { webhook_url: "https://a.example.com/z" });
  const { deliveries } = await claim({
    perRoute: 3,
    perReceiver: 6,
    perCustomer: 4,
    inHand: [...held(one.customer_id, "a.example.com", 1), ...held(third.customer_id, "c.example.com", 3)],
  });
  const count = (customer_id: CustomerId, receiver: string): number =>
    deliveries.filter((each) => each.customer_id === customer_id && each.receiver === receiver).length;
  // One has a place in hand, and three more for both of its receivers.
  const [toA, toB] = [count(one.customer_id, "a.example.com"), count(one.customer_id, "b.example.com:8443")];
  expect(toA + toB).toBe(3);
  expect(Math.min(toA, toB)).toBeGreaterThan(0);
  expect(count(third.customer_id, "a.example.com")).toBe(1);
  // As much as is left of the receiver's six, and no more than three.
  expect(count(other.customer_id, "a.example.com")).toBe(Math.min(3, 6 - 1 - toA - 1));

  const full = [...held(one.customer_id, "a.example.com", 3), ...held(one.customer_id, "b.example.com:8443", 3)];
  const next = await claim({ perRoute: 3, perReceiver: 6, perCustomer: 100, inHand: full });
  expect(next.deliveries.some(({ customer_id }) => customer_id === one.customer_id)).toBe(false);
  expect(next.deliveries).not.toEqual([]);
});

test("somebody with very many receivers cannot hide the others: each claim looks at so many and the next goes on", async () => {
  const customer = await t.customer();
  await t.db.query(
    `INSERT INTO webhook_deliveries (customer_id, url, event, dataset_id, next_attempt_at)
     SELECT $1, 'https://aaa-' || n || '.example.com/', 'dataset.paused', $3, now() + interval '1 h'
       FROM generate_series(1, $2::int) AS n`,
    [customer.customer_id, ROUTES_PER_CLAIM + 500, await t.dataset(customer)],
  );
  await t.ended(customer, { webhook_url: "https://zzz.example.com/" });
  const first = await claim();
  expect(first.deliveries).toEqual([]);
  expect(first.next).not.toBeNull();
  const second = await claim({ after: first.next });
  expect(second.deliveries.map(({ receiver }) => receiver)).toEqual(["zzz.example.com"]);
  expect(second.next).toBeNull();
});

test("a claim costs the same with a hundred and with twenty thousand messages waiting for one receiver", async () => {
  const customer = await t.customer();
  const dataset = await t.dataset(customer);
  const fill = (count: number) =>
    t.db.query(
      `INSERT INTO webhook_deliveries (customer_id, url, event, dataset_id)
       SELECT $1, 'https://busy.example.com/', 'dataset.paused', $3 FROM generate_series(1, $2::int)`,
      [customer.customer_id, count, dataset],
    );
  const inHand = Array.from({ length: 4 }, () => ({ ...customer, receiver: "busy.example.com" }));
  const busy = { perRoute: 4, inHand };
  const bestOf = async (runs: number): Promise<number> => {
    let best = Infinity;
    for (let run = 0; run < runs; run++) {
      const startedMs = performance.now();
      expect((await claim(busy)).deliveries).toEqual([]);
      best = Math.min(best, performance.now() - startedMs);
    }
    return best;
  };
  await fill(100);
  await t.db.query("ANALYZE webhook_deliveries");
  const few = await bestOf(20);
  await fill(20_000);
  await t.db.query("ANALYZE webhook_deliveries");
  const many = await bestOf(20);
  expect(many).toBeLessThan(few * 5 + 5);
});

test("a sender that was thought dead and comes back changes nothing but the log", async () => {
  const customer = await t.customer();
  await t.ended(customer, { webhook_url: "https://a.example.com/" });
  const [slow] = (await claim({ leaseMs: 1 })).deliveries;
  const [taken] = await until(async () => {
    const { deliveries } = await claim();
    return deliveries.length > 0 && deliveries;
  });
  if (!slow || !taken) throw new Error("both were claimed");
  expect([slow.attempt, taken.attempt]).toEqual([1, 2]);
  expect(await note(slow, 500, { state: "failed", reason: "late" })).toBe(false);
  expect(await t.deliveries(customer)).toMatchObject([{ state: "pending", sending: true }]);
  expect(await note(taken, 200, delivered)).toBe(true);
  expect(await note(taken, 200, { state: "failed", reason: "twice" })).toBe(false);
  const [delivery] = await t.deliveries(customer);
  expect(delivery).toMatchObject({ state: "delivered", attempts: 2 });
  expect(delivery && (await t.attempts(delivery)).map(({ n, status }) => [n, status])).toEqual([
    [1, 500],
    [2, 200],
  ]);
});

test("a resend during a send waits for its end, and two at once are one", async () => {
  const customer = await t.customer();
  await t.ended(customer, { webhook_url: "https://a.example.com/" });
  const [one] = (await claim()).deliveries;
  if (!one) throw new Error("it was due");
  await Promise.all([1, 2, 3].map(() => resendDelivery(t.database.as("gateway"), one.id, customer.customer_id)));
  expect((await claim()).deliveries).toEqual([]);
  await note(one, 200, delivered);
  const [again] = (await claim()).deliveries;
  expect(again).toMatchObject({ id: one.id, attempt: 2, counted: 1 });
  if (again) await note(again, 200, delivered);
  expect((await claim()).deliveries).toEqual([]);
});

test("a notifier that is told to stop gives back what does not end in time, and the next one sends it at once", async () => {
  const { url, received } = await receiver((response, nth) => void (nth > 0 && response.end()));
  const customer = await t.customer();
  await t.ended(customer, { webhook_url: url });
  const first = await t.notifier({ bounds: { ...NOTIFIER_BOUNDS, graceMs: 50 } });
  await until(() => received.length === 1);
  await first.stop();
  const [delivery] = await t.deliveries(customer);
  expect(delivery).toMatchObject({ state: "pending", sending: false, attempts: 1 });
  expect(delivery && (await t.attempts(delivery))).toMatchObject([{ n: 1, error: "broken off by us, and sent again" }]);
  const second = await t.notifier();
  stops.push(() => second.stop());
  await until(async () => (await t.deliveries(customer))[0]?.state === "delivered");
});

test("a notifier that is killed in the middle of a send is replaced: it is sent again once the claim ends", async () => {
  const { url, received } = await receiver((response, nth) => void (nth > 0 && response.end()));
  const customer = await t.customer();
  await t.endpoint(customer, url);
  await t.ended(customer);
  const folder = await mkdtemp(join(tmpdir(), "dream-notifier-"));
  stops.push(() => rm(folder, { recursive: true, force: true }));
  const child = spawn(process.execPath, ["src/cli/main.ts", "notifier"], {
    env: {
      PATH: process.env["PATH"],
      DATABASE_URL: t.database.url,
      DATA_DIR: folder,
      MODELS_DIR: resolve("models"),
      OUTBOUND_PRIVATE: "on",
      LOG_LEVEL: "warn",
    },
    stdio: "ignore",
  });
  const exited = once(child, "exit");
  stops.push(async () => void child.kill("SIGKILL"));
  await expect.poll(() => received.length, { timeout: 30_000, interval: 20 }).toBe(1);
  child.kill("SIGKILL");
  await exited;
  expect(await t.deliveries(customer)).toMatchObject([{ state: "pending", sending: true, attempts: 1 }]);

  const second = await t.notifier();
  stops.push(() => second.stop());
  // Still in the dead one's hands.
  await new Promise((done) => setTimeout(done, 1_500));
  expect(received).toHaveLength(1);
  await t.db.query("UPDATE webhook_deliveries SET claimed_until = now(), next_attempt_at = now()"); // a minute later
  await until(async () => (await t.deliveries(customer))[0]?.state === "delivered");
  expect(received.map(({ headers }) => headers["webhook-id"])).toHaveLength(2);
  expect(new Set(received.map(({ headers }) => headers["webhook-id"])).size).toBe(1);
});
