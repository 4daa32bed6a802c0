/** When the shared limiter's backend is away, slow or hangs: requests go on under the gateway's own buckets. */
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";

import { Redis } from "ioredis";
import { Registry } from "prom-client";
import { afterEach, describe, expect, test } from "vitest";

import { freePort } from "#cli/ports.ts";
import type { RatePolicy } from "#gateway/gcra.ts";
import type { RateLimiter } from "#gateway/rate-limiter.ts";
import { createFallbackRateLimiter } from "#gateway/rate-limiter-fallback.ts";
import { createLocalRateLimiter } from "#gateway/rate-limiter-local.ts";
import { openRateLimiter } from "#gateway/rate-limiter-open.ts";
import { redisKeyOf } from "#gateway/rate-limiter-redis.ts";
import { systemClock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import { createTestDatabase, silentLog } from "#test/support/postgres.ts";
import { freshRedisUrl } from "#test/support/redis.ts";

const SLOW: RatePolicy = { per_second: 1 / 100, burst: 3 };

const stops: (() => unknown)[] = [];
afterEach(async () => {
  for (const stop of stops.splice(0).toReversed()) await stop();
});

async function open(redis_url: string | undefined, sharedDb: Database | null) {
  const registry = new Registry();
  const limiter = await openRateLimiter({ redis_url, sharedDb, clock: systemClock, log: silentLog, registry });
  stops.push(() => limiter.stop());
  const fallbacks = async (): Promise<number> => {
    const metric = await registry.getSingleMetric("dream_rate_limit_fallbacks_total")?.get();
    return metric?.values[0]?.value ?? 0;
  };
  return { limiter, fallbacks };
}

async function grants(limiter: RateLimiter, name: string, times: number): Promise<number> {
  let count = 0;
  for (let i = 0; i < times; i++) if ((await limiter.take(name, SLOW)).allowed) count += 1;
  return count;
}

/** Accepts connections and says nothing, as a machine that hangs. */
async function silentServer(): Promise<{ server: Server; url: string }> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => undefined);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  stops.push(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  const { port } = server.address() as AddressInfo; // a server that listens on TCP has one
  return { server, url: `redis://127.0.0.1:${port}` };
}

/** A way to a server that can be closed, cutting whoever is on it. */
async function forward(port: number, to: number): Promise<() => Promise<void>> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    const onward = connect(to, "127.0.0.1");
    for (const one of [socket, onward]) {
      sockets.add(one);
      one.on("error", () => undefined);
    }
    socket.pipe(onward).pipe(socket);
  });
  await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve));
  return () =>
    new Promise((resolve) => {
      server.close(() => resolve());
      for (const socket of sockets) socket.destroy();
    });
}

describe("which form a gateway has", () => {
  test("Redis when there is one: gateways share their buckets there, and the database has none", async () => {
    const redisUrl = await freshRedisUrl();
    const database = await createTestDatabase();
    stops.push(() => database.drop());
    const [one, two] = [await open(redisUrl, database.db), await open(redisUrl, database.db)];
    expect(await grants(one.limiter, "key", 2)).toBe(2);
    expect(await grants(two.limiter, "key", 5)).toBe(1);
    expect(await database.db.query("SELECT * FROM rate_buckets")).toEqual([]);
  });

  test("else the database that it shares", async () => {
    const database = await createTestDatabase();
    stops.push(() => database.drop());
    const [one, two] = [await open(undefined, database.db), await open(undefined, database.db)];
    expect(await grants(one.limiter, "key", 2)).toBe(2);
    expect(await grants(two.limiter, "key", 5)).toBe(1);
    expect([await one.fallbacks(), await two.fallbacks()]).toEqual([0, 0]);
  });

  test("else its own", async () => {
    const { limiter } = await open(undefined, null);
    expect(await grants(limiter, "key", 5)).toBe(3);
  });
});

describe("without an answer", () => {
  test("a Redis that hangs from the start delays no request, and this gateway's own limit holds", async () => {
    const { url } = await silentServer();
    const { limiter, fallbacks } = await open(url, null);
    const started = performance.now();
    expect(await grants(limiter, "key", 20)).toBe(3);
    expect(performance.now() - started).toBeLessThan(1_000);
    expect(await fallbacks()).toBe(20);
  });

  test("a Redis that comes later, goes and comes back is used whenever it is there", async () => {
    const redisUrl = new URL(await freshRedisUrl());
    const port = await freePort();
    const { limiter } = await open(`redis://127.0.0.1:${port}${redisUrl.pathname}`, null);
    const client = new Redis(redisUrl.href);
    stops.push(() => client.disconnect());
    const inRedis = async (name: string): Promise<number> => {
      await limiter.take(name, SLOW);
      return client.exists(redisKeyOf(name));
    };
    expect(await inRedis("away")).toBe(0);
    for (const name of ["there", "there again"]) {
      const stop = await forward(port, Number(redisUrl.port));
      await expect.poll(() => inRedis(name), { timeout: 10_000 }).toBe(1);
      await stop();
      expect(await inRedis(`${name}, gone`)).toBe(0);
    }
  });

  test("a database that refuses is fallen back from, too", async () => {
    const database = await createTestDatabase();
    const { limiter, fallbacks } = await open(undefined, database.db);
    expect(await grants(limiter, "key", 1)).toBe(1);
    await database.drop();
    expect(await grants(limiter, "key", 10)).toBe(2); // and goes on from what it said last
    expect(await fallbacks()).toBe(10);
  });

  test("is waited for within the bound, for a second; then asked once a second until it answers", async () => {
    let asked = 0;
    let answers = false;
    const shared: RateLimiter = {
      take: () => {
        asked += 1;
        return answers
          ? Promise.resolve({ allowed: true, remaining: 77, retry_after_ms: 0 })
          : new Promise(() => undefined);
      },
    };
    const told: (string | null)[] = [];
    const limiter = createFallbackRateLimiter({
      shared,
      local: createLocalRateLimiter(systemClock),
      limitMs: 20,
      onFallback: (error) => told.push(error?.message ?? null),
    });
    expect(await grants(limiter, "key", 5)).toBe(3);
    expect(asked).toBe(5);
    expect(new Set(told)).toEqual(new Set([expect.stringContaining("within 20 ms")]));
    const latest = async (): Promise<string | null | undefined> => {
      await grants(limiter, "key", 10);
      return told.at(-1);
    };
    await expect.poll(latest, { timeout: 5_000 }).toBeNull();
    const before = asked;
    await grants(limiter, "key", 100);
    expect(asked - before).toBeLessThanOrEqual(1);
    answers = true;
    const remaining = async (): Promise<number> => (await limiter.take("key", SLOW)).remaining;
    await expect.poll(remaining, { timeout: 5_000 }).toBe(77);
  });

  test("a hiccup is no fresh burst: this gateway goes on from what the shared one said last", async () => {
    const frozen = { now: () => 1_000_000 };
    const central = createLocalRateLimiter(frozen);
    let away = false;
    const shared: RateLimiter = {
      take: (name, policy) => (away ? Promise.reject(new Error("away")) : central.take(name, policy)),
    };
    const limiter = createFallbackRateLimiter({
      shared,
      local: createLocalRateLimiter(frozen),
      limitMs: 1_000,
      onFallback: () => undefined,
    });
    expect(await grants(limiter, "some left", 1)).toBe(1);
    expect(await grants(limiter, "empty", 5)).toBe(3);
    away = true;
    expect(await grants(limiter, "some left", 5)).toBe(2);
    expect(await grants(limiter, "empty", 5)).toBe(0);
    expect(await grants(limiter, "new", 5)).toBe(3);
  });

  test("a process that was too busy to read its sockets does not take that for silence", async () => {
    const redisUrl = await freshRedisUrl();
    const { limiter, fallbacks } = await open(redisUrl, null);
    await limiter.take("warm", SLOW);
    const answers = Array.from({ length: 10 }, () => limiter.take("busy", SLOW));
    // Longer than the bound: the timers are due when the answers still lie in the socket.
    const until = performance.now() + 300;
    await Promise.resolve();
    while (performance.now() < until);
    expect((await Promise.all(answers)).filter(({ allowed }) => allowed)).toHaveLength(3);
    expect(await fallbacks()).toBe(0);
  });
});
