/** One suite for the three forms of the limiter, on a real Redis and a real PostgreSQL. */
import { Redis } from "ioredis";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { decideRate, type RatePolicy } from "#gateway/gcra.ts";
import { addressBucket, type RateLimiter } from "#gateway/rate-limiter.ts";
import { createLocalRateLimiter } from "#gateway/rate-limiter-local.ts";
import { createPostgresRateLimiter, sweepRateBuckets } from "#gateway/rate-limiter-postgres.ts";
import { createRedisRateLimiter, redisKeyOf } from "#gateway/rate-limiter-redis.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";
import { freshRedisUrl } from "#test/support/redis.ts";

interface Form {
  /** As many gateways as take part, each with a connection of its own; they share their buckets. */
  readonly gateways: readonly RateLimiter[];
  /** As if that much time had passed for this bucket: exact, where the server's clock is not ours to set. */
  pass(name: string, ms: number): Promise<void>;
  stop(): Promise<void>;
}

const GATEWAYS = 4;

/** One process is one gateway here. */
async function local(): Promise<Form> {
  let now = 1_000_000;
  const limiter = createLocalRateLimiter({ now: () => now });
  return {
    gateways: Array.from({ length: GATEWAYS }, () => limiter),
    async pass(_name, ms) {
      now += ms;
    },
    stop: async () => undefined,
  };
}

async function redis(): Promise<Form> {
  const url = await freshRedisUrl();
  const gateways = Array.from({ length: GATEWAYS }, () => createRedisRateLimiter({ url, log: silentLog }));
  await Promise.all(gateways.map(({ connected }) => connected));
  const client = new Redis(url);
  return {
    gateways,
    async pass(name, ms) {
      const fullAtUs = Number(await client.get(redisKeyOf(name)));
      await client.set(redisKeyOf(name), (fullAtUs - ms * 1000).toFixed(3), "KEEPTTL");
    },
    async stop() {
      client.disconnect();
      for (const gateway of gateways) await gateway.stop();
    },
  };
}

async function postgres(): Promise<Form> {
  const database = await createTestDatabase({ poolMax: GATEWAYS * 4 });
  const { db } = database;
  const gateways = Array.from({ length: GATEWAYS }, () => createPostgresRateLimiter({ db, log: silentLog }));
  return {
    gateways,
    async pass(name, ms) {
      await db.query(
        `UPDATE rate_buckets SET full_at = full_at - $2::float8 * interval '1 millisecond' WHERE name = $1`,
        [name, ms],
      );
    },
    async stop() {
      for (const gateway of gateways) await gateway.stop();
      await database.drop();
    },
  };
}

/** So slow that the time a test takes is nothing. */
const SLOW: RatePolicy = { per_second: 1 / 100, burst: 5 };

describe.each([
  ["in the process", local],
  ["in Redis", redis],
  ["in PostgreSQL", postgres],
])("the limiter %s", (_name, open) => {
  let form: Form;
  let limiter: RateLimiter;
  beforeAll(async () => {
    form = await open();
    [limiter] = form.gateways as [RateLimiter];
  });
  afterAll(() => form.stop());

  const grants = async (name: string, policy: RatePolicy, times: number): Promise<number> => {
    let count = 0;
    for (let i = 0; i < times; i++) if ((await limiter.take(name, policy)).allowed) count += 1;
    return count;
  };

  test("a fresh bucket grants its burst, counts it down, and no more", async () => {
    const decisions = [];
    for (let i = 0; i < 7; i++) decisions.push(await limiter.take("fresh", SLOW));
    expect(decisions.map(({ allowed }) => allowed)).toEqual([true, true, true, true, true, false, false]);
    expect(decisions.map(({ remaining }) => remaining)).toEqual([4, 3, 2, 1, 0, 0, 0]);
    expect(decisions[4]?.retry_after_ms).toBe(0);
  });

  test("says when to come back, and means it", async () => {
    await grants("patient", SLOW, 5);
    await form.pass("patient", 60_000);
    const refused = await limiter.take("patient", SLOW);
    expect(refused.allowed).toBe(false);
    expect(refused.retry_after_ms).toBeGreaterThan(35_000);
    expect(refused.retry_after_ms).toBeLessThanOrEqual(40_000);
    await form.pass("patient", refused.retry_after_ms - 5_000);
    expect((await limiter.take("patient", SLOW)).allowed).toBe(false);
    await form.pass("patient", 5_000);
    expect((await limiter.take("patient", SLOW)).allowed).toBe(true);
  });

  test("a refused request takes nothing, however often it asks", async () => {
    await grants("insistent", SLOW, 5);
    expect(await grants("insistent", SLOW, 50)).toBe(0);
    await form.pass("insistent", 100_000);
    expect(await grants("insistent", SLOW, 5)).toBe(1);
  });

  test("regains what the time is worth, and never more than the burst", async () => {
    await grants("rested", SLOW, 5);
    await form.pass("rested", 250_000);
    expect(await grants("rested", SLOW, 5)).toBe(2);
    await form.pass("rested", 10_000_000);
    expect(await grants("rested", SLOW, 20)).toBe(5);
  });

  test("an interval that is no whole number of microseconds loses no request of the burst", async () => {
    expect(await grants("thirds", { per_second: 3 / 1000, burst: 300 }, 310)).toBe(300);
  });

  test("keeps a bucket for each name, whatever is in the name", async () => {
    for (const name of ["a", "b", "failed from 2001:db8::/64", "it's; DROP TABLE rate_buckets --", "é\n{x}"]) {
      expect(await grants(name, { per_second: 1 / 100, burst: 1 }, 2), name).toBe(1);
    }
  });

  test("a raised rate holds from the next request on, also for a bucket that was dry for long", async () => {
    await grants("raised", { per_second: 1 / 1000, burst: 5 }, 5); // full again in 5,000 s
    const raised = { per_second: 1 / 10, burst: 5 };
    expect(await grants("raised", raised, 5)).toBe(1); // what clears the old debt
    await form.pass("raised", 20_000);
    expect(await grants("raised", raised, 5)).toBe(2);
  });

  test("a lowered rate leaves at most the new burst", async () => {
    await grants("lowered", { per_second: 1, burst: 100 }, 2);
    expect(await grants("lowered", { per_second: 1 / 100, burst: 3 }, 20)).toBeLessThanOrEqual(3);
    expect(await grants("lowered", { per_second: 1 / 100, burst: 3 }, 20)).toBe(0);
  });

  test("from several connections at once exactly the burst is granted", async () => {
    const policy = { per_second: 1 / 1000, burst: 50 };
    const rounds = Array.from({ length: 100 }, () => form.gateways).flat();
    const decisions = await Promise.all(rounds.map((gateway) => gateway.take("crowd", policy)));
    expect(decisions.filter(({ allowed }) => allowed)).toHaveLength(50);
    const waits = decisions.flatMap(({ allowed, retry_after_ms }) => (allowed ? [] : [retry_after_ms]));
    expect(Math.min(...waits)).toBeGreaterThan(0);
  });

  test("decides as the policy does, over a history of requests and pauses", async () => {
    const policy = { per_second: 1 / 60, burst: 4 };
    let now = 0;
    let state: number | undefined;
    for (const pause of [0, 0, 0, 70, 0, 0, 0, 30, 40, 0, 500, 0, 0, 0, 0, 0, 59, 2, 0, 121, 0, 0, 0]) {
      now += pause * 1000;
      await form.pass("history", pause * 1000);
      const { full_at_ms, allowed, remaining } = decideRate(state, policy, now);
      state = full_at_ms;
      expect(await limiter.take("history", policy), `at ${now} ms`).toMatchObject({ allowed, remaining });
    }
  });
});

/** Which of these names it still knows, without making it know one: a bucket of SLOW that was emptied refuses. */
async function known(limiter: RateLimiter, names: readonly string[]): Promise<string[]> {
  const found: string[] = [];
  for (const name of names) {
    if ((await limiter.take(name, SLOW)).allowed) break;
    found.push(name);
  }
  return found;
}
async function empty(limiter: RateLimiter, name: string): Promise<void> {
  for (let i = 0; i < SLOW.burst; i++) await limiter.take(name, SLOW);
}

describe("in the process", () => {
  test("forgets full buckets first, then the oldest, and stays bounded", async () => {
    let now = 0;
    const limiter = createLocalRateLimiter({ now: () => now }, 2);
    const policy = { per_second: 1, burst: 1 };
    await limiter.take("a", policy);
    now = 900;
    await limiter.take("b", policy);
    now = 1_500; // "a" is full again, "b" is not
    await limiter.take("c", policy);
    expect((await limiter.take("b", policy)).allowed).toBe(false);
    await limiter.take("d", policy); // both are in use: the older one goes
    expect((await limiter.take("d", policy)).allowed).toBe(false);
  });

  test("holds no more than its bound, also when every bucket is in use and no time passes", async () => {
    const limiter = createLocalRateLimiter({ now: () => 0 }, 3);
    const names = Array.from({ length: 12 }, (_unused, i) => `name ${i}`);
    for (const name of names) await empty(limiter, name);
    expect(await known(limiter, names.toReversed())).toEqual(["name 11", "name 10", "name 9"]);
  });

  test("forgets what was not used for the longest, whenever it began", async () => {
    const limiter = createLocalRateLimiter({ now: () => 0 }, 3);
    for (const name of ["busy", "idle", "third"]) await empty(limiter, name);
    expect((await limiter.take("busy", SLOW)).allowed).toBe(false);
    await empty(limiter, "fourth");
    expect(await known(limiter, ["busy", "third", "fourth", "idle"])).toEqual(["busy", "third", "fourth"]);
  });

  test("a flood of addresses pushes out no key's bucket, nor keys an address's", async () => {
    const limiter = createLocalRateLimiter({ now: () => 0 }, 50);
    await empty(limiter, "key_1");
    for (let i = 0; i < 200; i++) await empty(limiter, addressBucket("signup", `2001:db8:0:${i.toString(16)}::1`));
    expect(await known(limiter, ["key_1"])).toEqual(["key_1"]);
    for (let i = 0; i < 200; i++) await empty(limiter, `key_${i}`);
    const last = addressBucket("signup", "2001:db8:0:c7::1");
    expect(await known(limiter, [last])).toEqual([last]);
  });

  test("a new name costs no look at all the others: 20,000 of them beside 50,000 in use", async () => {
    let now = 0;
    const limiter = createLocalRateLimiter({ now: () => now });
    const name = { per_second: 1 / 3600, burst: 1 };
    for (let i = 0; i < 50_000; i++) await limiter.take(`old ${i}`, name);
    const started = performance.now();
    for (let i = 0; i < 20_000; i++) {
      now += 1;
      await limiter.take(`new ${i}`, name);
    }
    // A look at all of them for each would take some 15 s; this takes some 0.1 s.
    expect(performance.now() - started).toBeLessThan(4_000);
  });
});

describe("what is left behind", () => {
  let database: TestDatabase;
  beforeAll(async () => {
    database = await createTestDatabase();
  });
  afterAll(() => database.drop());

  test("Redis forgets a bucket when it is full again", async () => {
    const url = await freshRedisUrl();
    const limiter = createRedisRateLimiter({ url, log: silentLog });
    await limiter.connected;
    const client = new Redis(url);
    await limiter.take("short", { per_second: 20, burst: 5 });
    expect(await client.pttl(redisKeyOf("short"))).toBeLessThanOrEqual(51);
    await expect.poll(() => client.exists(redisKeyOf("short"))).toBe(0);
    client.disconnect();
    await limiter.stop();
  });

  test("Redis may lose its scripts: the next request brings them again", async () => {
    const url = await freshRedisUrl();
    const limiter = createRedisRateLimiter({ url, log: silentLog });
    await limiter.connected;
    const client = new Redis(url);
    await limiter.take("script", SLOW);
    await client.script("FLUSH");
    expect((await limiter.take("script", SLOW)).remaining).toBe(3);
    client.disconnect();
    await limiter.stop();
  });

  test("PostgreSQL changes no row for a request that it refuses", async () => {
    const { db } = database;
    const limiter = createPostgresRateLimiter({ db, log: silentLog });
    const version = (): Promise<unknown> => db.query("SELECT ctid, xmin FROM rate_buckets WHERE name = 'dry'");
    for (let i = 0; i < SLOW.burst; i++) await limiter.take("dry", SLOW);
    const before = await version();
    for (let i = 0; i < 20; i++) await limiter.take("dry", SLOW);
    expect(await version()).toEqual(before);
    await limiter.stop();
    await db.query("DELETE FROM rate_buckets");
  });

  test("PostgreSQL's sweep removes full buckets and no others", async () => {
    const { db } = database;
    const limiter = createPostgresRateLimiter({ db, log: silentLog });
    await limiter.take("full soon", { per_second: 1_000, burst: 1 });
    await limiter.take("in use", SLOW);
    const names = (): Promise<{ name: string }[]> => db.query("SELECT name FROM rate_buckets ORDER BY name");
    await expect
      .poll(async () => {
        await sweepRateBuckets(db);
        return names();
      })
      .toEqual([{ name: "in use" }]);
    await limiter.stop();
  });
});
