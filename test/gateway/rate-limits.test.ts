/** Rate limits as callers meet them. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import { callerAddress } from "#gateway/caller-address.ts";
import { createPostgresRateLimiter } from "#gateway/rate-limiter-postgres.ts";
import { limitKey } from "#keys/keys.ts";
import { createTestDatabase, silentLog } from "#test/support/postgres.ts";

import { actionsFile } from "./support/npy-writer.ts";
import { framePng, getWithKey, postForm } from "./support/requests.ts";
import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

let t: TestGateway;
beforeAll(async () => {
  t = await startTestGateway({ config: { TRUSTED_PROXIES: ["10.0.0.0/8", "fd00::/8"] } });
});
afterAll(() => t.stop());

const balance = (apiKey: string) => getWithKey(t.app, "/v1/billing/balance", apiKey);

describe("a key's limit", () => {
  test("holds from the next request on when it is changed", async () => {
    const key = await t.newKey(mils(0), { rate_per_s: 1, burst: 1 });
    expect((await balance(key.api_key)).statusCode).toBe(200);
    expect((await balance(key.api_key)).statusCode).toBe(429);

    await limitKey(t.db, key.key_id, { rate_per_s: 100, burst: 10 });
    const raised = await balance(key.api_key);
    expect(raised.statusCode).toBe(200);
    expect(raised.headers["ratelimit-policy"]).toBe('"key";q=10;w=1');

    await limitKey(t.db, key.key_id, { rate_per_s: 1, burst: 1 });
    const lowered = [await balance(key.api_key), await balance(key.api_key)];
    expect(lowered.map(({ statusCode }) => statusCode)).toContain(429);
    expect(lowered[1]?.headers["ratelimit-policy"]).toBe('"key";q=1;w=1');
  });

  test("a batch of many candidates costs one, as a single one does", async () => {
    const key = await t.newKey(mils(1_000_000), { rate_per_s: 1, burst: 20 });
    const batch = await postForm(t.app, "/v1/predict/batch", key.api_key, [
      { name: "frame", body: await framePng(), filename: "frame.png" },
      ...Array.from({ length: 8 }, (_unused, k) => ({
        name: "actions",
        body: actionsFile(48, 2),
        filename: `actions_${String(k).padStart(3, "0")}.npy`,
      })),
    ]);
    expect(batch.statusCode).toBe(200);
    expect(batch.headers["ratelimit"]).toMatch(/^"key";r=19;/);
  });

  test("is a number of whole seconds in Retry-After, and one header says the policy", async () => {
    const key = await t.newKey(mils(0), { rate_per_s: 1, burst: 1 });
    await balance(key.api_key);
    const refused = await balance(key.api_key);
    expect(refused.statusCode).toBe(429);
    expect(refused.headers["retry-after"]).toBe("1");
    expect(refused.headers["ratelimit"]).toBe('"key";r=0;t=1');
    expect(refused.json()).toMatchObject({
      detail: expect.stringContaining("1 requests a second"),
      error: { code: "rate_limited" },
    });
  });

  test("is the key's own: its sister on the same balance goes on", async () => {
    const key = await t.newKey(mils(0), { rate_per_s: 1, burst: 1 });
    const minted = await t.app.inject({
      method: "POST",
      url: "/v1/keys",
      headers: { authorization: `Bearer ${key.api_key}` },
    });
    expect(minted.statusCode).toBe(201);
    expect((await balance(key.api_key)).statusCode).toBe(429);
    expect((await balance(minted.json().api_key)).statusCode).toBe(200);
  });

  test("is not got round by rotating: so many new keys at once, then so many an hour", async () => {
    let key = await t.newKey(mils(0), { rate_per_s: 1, burst: 10 });
    const customer = key.customer_id;
    const send = (method: "POST" | "DELETE", url: string, apiKey: string) =>
      t.app.inject({ method, url, headers: { authorization: `Bearer ${apiKey}` } });
    for (let i = 0; i < 20; i++) {
      const minted = await send("POST", "/v1/keys", key.api_key);
      expect(minted.statusCode).toBe(201);
      const next = minted.json();
      expect((await send("DELETE", `/v1/keys/${key.key_id}`, next.api_key)).statusCode).toBe(200);
      key = { ...key, key_id: next.id, api_key: next.api_key };
    }
    const refused = await send("POST", "/v1/keys", key.api_key);
    expect(refused.statusCode).toBe(429);
    expect(Number(refused.headers["retry-after"])).toBeGreaterThan(60);
    expect(refused.json().detail).toContain("new keys of this customer");
    // Another customer is not held up by it.
    const other = await t.newKey();
    expect(other.customer_id).not.toBe(customer);
    expect((await send("POST", "/v1/keys", other.api_key)).statusCode).toBe(201);
  });

  test("counts for several gateways together where they share their buckets", async () => {
    const database = await createTestDatabase();
    const limiters = [1, 2].map(() => createPostgresRateLimiter({ db: database.db, log: silentLog }));
    const gateways = await Promise.all(limiters.map((rateLimiter) => startTestGateway({ rateLimiter })));
    // A key of either gateway's own database; the name of the bucket is what they share.
    const [one, two] = gateways as [TestGateway, TestGateway];
    const key = await one.newKey(mils(0), { rate_per_s: 1, burst: 4 });
    const { key_id, customer_id, prefix } = key;
    await two.db.query("INSERT INTO customers (id) VALUES ($1)", [customer_id]);
    await two.db.query("INSERT INTO accounts (customer_id, account) VALUES ($1, 'balance'), ($1, 'debt')", [
      customer_id,
    ]);
    const [row] = await one.db.query<{ key_hash: Buffer }>("SELECT key_hash FROM api_keys WHERE id = $1", [key_id]);
    await two.db.query(
      "INSERT INTO api_keys (id, customer_id, key_hash, prefix, rate_per_s, burst) VALUES ($1, $2, $3, $4, 1, 4)",
      [key_id, customer_id, row?.key_hash, prefix],
    );
    const statuses = [];
    for (let i = 0; i < 6; i++) {
      const { app } = i % 2 === 0 ? one : two;
      statuses.push((await getWithKey(app, "/v1/billing/balance", key.api_key)).statusCode);
    }
    expect(statuses.slice(0, 4)).toEqual([200, 200, 200, 200]);
    expect(statuses).toContain(429);
    for (const gateway of gateways) await gateway.stop();
    for (const limiter of limiters) await limiter.stop();
    await database.drop();
  });
});

const from = (remoteAddress: string, apiKey: string, forwardedFor?: string) =>
  t.app.inject({
    url: "/v1/billing/balance",
    remoteAddress,
    headers: {
      authorization: `Bearer ${apiKey}`,
      ...(forwardedFor === undefined ? {} : { "x-forwarded-for": forwardedFor }),
    },
  });

const failUntilRefused = async (remoteAddress: string, forwardedFor?: string): Promise<void> => {
  for (let i = 0; i < 200; i++) {
    if ((await from(remoteAddress, "dre_wrong", forwardedFor)).statusCode === 429) return;
  }
  throw new Error("200 failed attempts, and none was slowed down");
};

describe("failed authentications of one address", () => {
  test("are slowed down with seconds to wait; a right key from there works", async () => {
    const { api_key } = await t.newKey();
    await failUntilRefused("192.0.2.1");
    const refused = await from("192.0.2.1", "dre_wrong");
    expect(refused.statusCode).toBe(429);
    expect(Number(refused.headers["retry-after"])).toBeGreaterThanOrEqual(1);
    expect((await from("192.0.2.1", api_key)).statusCode).toBe(200);
    expect((await from("192.0.2.2", "dre_wrong")).statusCode).toBe(401);
  });

  test("behind a trusted proxy count for the caller, not for the proxy", async () => {
    await failUntilRefused("10.1.2.3", "198.51.100.1");
    expect((await from("10.9.9.9", "dre_wrong", "198.51.100.1")).statusCode).toBe(429);
    expect((await from("10.1.2.3", "dre_wrong", "198.51.100.2")).statusCode).toBe(401);
  });

  test("cannot be blamed on others: who is no trusted proxy is believed nothing", async () => {
    await failUntilRefused("203.0.113.5", "198.51.100.77");
    expect((await from("203.0.113.5", "dre_wrong", "198.51.100.78")).statusCode).toBe(429);
    expect((await from("203.0.113.6", "dre_wrong", "198.51.100.77")).statusCode).toBe(401);
    // A made-up hop in front of the address that our proxy saw changes nothing.
    expect((await from("10.1.2.3", "dre_wrong", "198.51.100.200, 203.0.113.5")).statusCode).toBe(429);
  });

  test("of one IPv6 network count together", async () => {
    await failUntilRefused("2001:db8:1:2::1");
    expect((await from("2001:db8:1:2:ffff::9", "dre_wrong")).statusCode).toBe(429);
    expect((await from("2001:db8:1:3::1", "dre_wrong")).statusCode).toBe(401);
  });
});

test.each([
  ["192.0.2.1", "192.0.2.1"],
  ["::ffff:192.0.2.1", "192.0.2.1"],
  ["::FFFF:c000:201", "192.0.2.1"],
  ["::ffff:7f00:1", "127.0.0.1"],
  ["0:0:0:0:0:ffff:192.0.2.1", "192.0.2.1"],
  ["64:ff9b::c633:6401", "198.51.100.1"],
  ["64:ff9b::198.51.100.1", "198.51.100.1"],
  ["64:ff9b:0:0:1::c633:6401", "64:ff9b:0:0::/64"],
  ["::ffff:0:192.0.2.1", "0:0:0:0::/64"],
  ["2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"],
  ["2001:DB8::1", "2001:db8:0:0::/64"],
  ["::1", "0:0:0:0::/64"],
  ["fe80::1%eth0", "fe80:0:0:0::/64"],
  ["2001:db8:1:2::", "2001:db8:1:2::/64"],
])("the address %s is counted as %s", (ip, counted) => {
  expect(callerAddress(ip)).toBe(counted);
});
