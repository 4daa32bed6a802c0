/** Keys over HTTP: a customer's own, and signing up. */
import { randomBytes } from "node:crypto";

import type { LightMyRequestResponse } from "fastify";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import type { RateLimiter } from "#gateway/rate-limiter.ts";
import { createLocalRateLimiter } from "#gateway/rate-limiter-local.ts";
import { isEmail } from "#gateway/routes/signup.ts";
import { createKey, revokeKey } from "#keys/keys.ts";
import { readToken } from "#keys/token.ts";

import { getWithKey } from "./support/requests.ts";
import { startTestGateway, type TestGateway } from "./support/test-gateway.ts";

let t: TestGateway;
beforeAll(async () => {
  t = await startTestGateway();
});
afterAll(() => t.stop());

type Method = "GET" | "POST" | "DELETE";
const ask = (method: Method, url: string, apiKey: string, payload?: object): Promise<LightMyRequestResponse> =>
  t.app.inject({ method, url, headers: { authorization: `Bearer ${apiKey}` }, ...(payload ? { payload } : {}) });
const codeOf = (answer: LightMyRequestResponse): string => answer.json().error.code;

describe("GET /v1/keys", () => {
  test("shows what is known of each key, which one asks, and never a key", async () => {
    const key = await t.newKey(mils(0), { rate_per_s: 3, burst: 4 });
    const minted = (await ask("POST", "/v1/keys", key.api_key, { label: "robot arm" })).json();
    const answer = await ask("GET", "/v1/keys", key.api_key);
    expect(answer.statusCode).toBe(200);
    expect(answer.json()).toEqual({
      object: "list",
      data: [
        {
          id: minted.id,
          object: "api_key",
          prefix: minted.prefix,
          label: "robot arm",
          created: expect.any(Number),
          last_used: null,
          expires_at: null,
          revoked_at: null,
          rate_per_s: 3,
          burst: 4,
          current: false,
        },
        expect.objectContaining({ id: key.key_id, prefix: key.prefix, label: null, current: true }),
      ],
    });
    expect(Math.abs(answer.json().data[0].created - Date.now() / 1000)).toBeLessThan(60);
    expect(answer.body).not.toContain(key.api_key);
    expect(answer.body).not.toContain(minted.api_key);
  });

  test("shows nobody else's", async () => {
    const [mine, theirs] = [await t.newKey(), await t.newKey()];
    const { data } = (await ask("GET", "/v1/keys", mine.api_key)).json();
    expect(data.map(({ id }: { id: string }) => id)).toEqual([mine.key_id]);
    expect(theirs.key_id).not.toBe(mine.key_id);
  });

  test("says when a key was last used once the gateway has written it", async () => {
    const own = await startTestGateway();
    const key = await own.newKey();
    const used = Date.now();
    await getWithKey(own.app, "/v1/keys", key.api_key);
    await own.gateway.app.close();
    const [row] = await own.db.query<{ last_used_at: Date }>("SELECT last_used_at FROM api_key_usage");
    expect(Math.abs(Number(row?.last_used_at) - used)).toBeLessThan(10_000);
    await own.stop();
  });
});

describe("POST and DELETE /v1/keys", () => {
  test("rotation needs nobody, under every base URL", async () => {
    for (const base of ["", "/m/arm"]) {
      const old = await t.newKey(mils(700));
      const minted = await ask("POST", `${base}/v1/keys`, old.api_key, { label: "2027" });
      expect(minted.statusCode).toBe(201);
      expect(minted.headers["cache-control"]).toBe("no-store");
      const { api_key, id, prefix } = minted.json();
      expect(readToken(api_key).ok).toBe(true);
      expect(api_key.startsWith(prefix)).toBe(true);

      const balance = await getWithKey(t.app, `${base}/v1/billing/balance`, api_key);
      expect(balance.json()).toMatchObject({ customer_id: old.customer_id, balance_mils: 700 });

      const deleted = await ask("DELETE", `${base}/v1/keys/${old.key_id}`, api_key);
      expect(deleted.statusCode).toBe(200);
      expect(deleted.json()).toMatchObject({ id: old.key_id, revoked_at: expect.any(Number), current: false });
      expect(codeOf(await ask("GET", "/v1/keys", old.api_key))).toBe("revoked_key");

      const last = await ask("DELETE", `${base}/v1/keys/${id}`, api_key);
      expect([last.statusCode, codeOf(last)]).toEqual([409, "last_key"]);
      expect((await ask("DELETE", `${base}/v1/keys/${id}?force=true`, api_key)).statusCode).toBe(200);
      expect((await ask("GET", "/v1/keys", api_key)).statusCode).toBe(401);
    }
  });

  test("the body may be left out", async () => {
    const key = await t.newKey();
    const minted = await ask("POST", "/v1/keys", key.api_key);
    expect(minted.statusCode).toBe(201);
    expect(minted.json()).toMatchObject({ label: null, expires_at: null, rate_per_s: 50, burst: 200 });
  });

  test("a key may be given an end, in epoch seconds", async () => {
    const key = await t.newKey();
    const end = Math.floor(Date.now() / 1000) + 3_600;
    expect((await ask("POST", "/v1/keys", key.api_key, { expires_at: end })).json().expires_at).toBe(end);
  });

  test.each([
    [{ expires_at: 1 }, /expires_at: expected a time to come in epoch seconds, got 1$/],
    [{ expires_at: 1e300 }, /expires_at/],
    [{ expires_at: "tomorrow" }, /expires_at/],
    [{ label: "x".repeat(101) }, /label/],
    [{ label: "a\u0000b" }, /label: .*control characters/],
    [{ label: { a: 1 } }, /label/],
    [{ label: 7 }, /body\.label: expected a string, got 7/],
    [{ label: ["ci"] }, /body\.label: expected a string, got \["ci"\]/],
    [{ labell: "ci" }, /body\.labell: there is no such field, expected label, expires_at/],
    [{ expiresAt: 2_000_000_000 }, /body\.expiresAt: there is no such field/],
    [{ expires_at: "2000000000" }, /body\.expires_at: expected an integer, got "2000000000"/],
    [{ expires_at: null }, /body\.expires_at: expected an integer, got null/],
    [{ toString: 1 }, /body\.toString: there is no such field/],
    [[], /body/],
  ])("%j is refused with what was expected", async (body, message) => {
    const key = await t.newKey();
    const refused = await ask("POST", "/v1/keys", key.api_key, body);
    expect(refused.statusCode).toBe(422);
    expect(refused.json().detail).toMatch(message);
  });

  test("a body of more than 4 kB is refused", async () => {
    const key = await t.newKey();
    const refused = await ask("POST", "/v1/keys", key.api_key, { label: "x".repeat(5_000) });
    expect(refused.statusCode).toBe(413);
    expect(refused.json().detail).toBe("expected a body of at most 4 kB");
  });

  test("the 21st usable key is refused", async () => {
    const key = await t.newKey();
    for (let i = 1; i < 20; i++) expect((await ask("POST", "/v1/keys", key.api_key)).statusCode).toBe(201);
    const refused = await ask("POST", "/v1/keys", key.api_key);
    expect([refused.statusCode, codeOf(refused)]).toEqual([409, "too_many_keys"]);
  });

  test("another customer's key id is answered as one that does not exist", async () => {
    const [mine, theirs] = [await t.newKey(), await t.newKey()];
    const [foreign, unknown] = [
      await ask("DELETE", `/v1/keys/${theirs.key_id}?force=true`, mine.api_key),
      await ask("DELETE", "/v1/keys/key_0123456789abcdef?force=true", mine.api_key),
    ];
    expect([foreign.statusCode, unknown.statusCode]).toEqual([404, 404]);
    expect(foreign.json().detail).toBe(unknown.json().detail);
    expect((await ask("GET", "/v1/keys", theirs.api_key)).statusCode).toBe(200);
  });

  test("nobody without a key, or with a revoked one, gets another", async () => {
    const key = await t.newKey();
    await revokeKey(t.db, key.key_id);
    expect((await ask("POST", "/v1/keys", key.api_key)).statusCode).toBe(401);
    expect((await t.app.inject({ method: "POST", url: "/v1/keys" })).statusCode).toBe(401);
  });

  test("what is refused for a typo uses up no new key", async () => {
    const key = await t.newKey();
    for (let i = 0; i < 25; i++) await ask("POST", "/v1/keys", key.api_key, { label: "a\u0000b" });
    expect((await ask("POST", "/v1/keys", key.api_key)).statusCode).toBe(201);
  });

  test("with AUTH=off the built-in key makes none that would work with AUTH=on, and cannot be deleted", async () => {
    const local = await startTestGateway({ config: { AUTH: "off" } });
    const minted = await local.app.inject({ method: "POST", url: "/v1/keys" });
    expect([minted.statusCode, codeOf(minted)]).toEqual([403, "forbidden"]);
    expect(minted.json().detail).toContain("keys create");
    const refused = await local.app.inject({ method: "DELETE", url: "/v1/keys/key_local?force=true" });
    expect(refused.statusCode).toBe(403);
    await local.stop();
  });
});

const signUp = (to: TestGateway, payload: unknown, remoteAddress = "192.0.2.1", url = "/v1/signup") =>
  to.app.inject({
    method: "POST",
    url,
    remoteAddress,
    headers: { "content-type": "application/json" },
    payload: typeof payload === "string" ? payload : JSON.stringify(payload),
  });

describe("POST /v1/signup", () => {
  const started: TestGateway[] = [];
  afterEach(async () => {
    for (const gateway of started.splice(0)) await gateway.stop();
  });
  async function open(now = () => Date.now()): Promise<TestGateway> {
    const gateway = await startTestGateway({ config: { SIGNUP: "on" }, clock: { now } });
    started.push(gateway);
    return gateway;
  }
  test("is off unless turned on, and says so to anything", async () => {
    for (const body of [{ email: "a@example.com" }, "no json", {}]) {
      const refused = await signUp(t, body);
      expect([refused.statusCode, codeOf(refused)]).toEqual([403, "signup_disabled"]);
      expect(refused.json().detail).toContain("SIGNUP=on");
    }
  });

  test("makes a customer whose key works at once", async () => {
    const gateway = await open();
    const answer = await signUp(gateway, { email: "Ada@Example.com", label: "first" });
    expect(answer.statusCode).toBe(201);
    expect(answer.headers["cache-control"]).toBe("no-store");
    const { api_key, customer_id, key_id, prefix, balance_mils } = answer.json();
    expect({ balance_mils, prefix }).toEqual({ balance_mils: 0, prefix: api_key.slice(0, 11) });
    const keys = await getWithKey(gateway.app, "/v1/keys", api_key);
    expect(keys.json().data).toMatchObject([{ id: key_id, label: "first", current: true }]);
    const [row] = await gateway.db.query("SELECT email, signup_email FROM customers WHERE id = $1", [customer_id]);
    expect(row).toEqual({ email: null, signup_email: "ada@example.com" });
    expect((await signUp(gateway, { email: "b@example.com" }, "192.0.2.1", "/m/arm/v1/signup")).statusCode).toBe(201);
  });

  test("never gives a key to a customer who exists", async () => {
    const gateway = await open();
    const { api_key } = (await signUp(gateway, { email: "ada@example.com" })).json();
    const operators = await createKey(gateway.db, { customer: "bob@example.com" }, randomBytes);
    const owners = [(await getWithKey(gateway.app, "/v1/billing/balance", api_key)).json().customer_id];
    owners.push(operators.customer_id);
    for (const email of ["ADA@example.com", "bob@example.com"]) {
      const again = await signUp(gateway, { email });
      expect(again.statusCode).toBe(201); // as for an address that nobody has: nothing to find out here
      expect(owners).not.toContain(again.json().customer_id);
    }
    for (const key of [api_key, operators.api_key]) {
      expect((await getWithKey(gateway.app, "/v1/keys", key)).json().data).toHaveLength(1);
    }
  });

  test("five an hour from one address, whatever comes of them; typos and other addresses do not count", async () => {
    let now = 1_800_000_000_000;
    const gateway = await open(() => now);
    const statuses: number[] = [];
    for (let i = 0; i < 6; i++) {
      await signUp(gateway, { email: "no address" });
      await signUp(gateway, { email: "bad-label@example.com", label: "a\u0000b" });
      await signUp(gateway, { email: "bad-field@example.com", lable: "ci" });
      statuses.push((await signUp(gateway, { email: `same-${i % 3}@example.com` })).statusCode);
      now += 2_000;
    }
    expect(statuses).toEqual([201, 201, 201, 201, 201, 429]);
    const refused = await signUp(gateway, { email: "more@example.com" });
    expect(Number(refused.headers["retry-after"])).toBeGreaterThan(600);
    expect(refused.headers["ratelimit-policy"]).toBe('"sign-ups";q=5;w=3600');
    expect((await signUp(gateway, { email: "more@example.com" }, "192.0.2.2")).statusCode).toBe(201);
    now += 3_600_000 / 5;
    expect((await signUp(gateway, { email: "later@example.com" })).statusCode).toBe(201);
  });

  test("twenty at once in one process from however many addresses, then one a second", async () => {
    let now = 1_800_000_000_000;
    const gateway = await open(() => now);
    const crowd = (from: number, count: number): Promise<number[]> =>
      Promise.all(
        Array.from({ length: count }, async (_unused, i) => {
          const answer = await signUp(gateway, { email: `crowd-${from + i}@example.com` }, `198.51.100.${from + i}`);
          return answer.statusCode;
        }),
      );
    expect((await crowd(0, 30)).filter((status) => status === 201)).toHaveLength(20);
    now += 2_000;
    expect((await crowd(100, 5)).filter((status) => status === 201)).toHaveLength(2);
  });

  test("an address that is refused uses up nobody else's sign-ups", async () => {
    const gateway = await open(() => 1_800_000_000_000);
    const statuses = [];
    for (let i = 0; i < 40; i++) statuses.push((await signUp(gateway, { email: "one@example.com" })).statusCode);
    expect(statuses.filter((status) => status === 201)).toHaveLength(5);
    expect((await signUp(gateway, { email: "two@example.com" }, "192.0.2.9")).statusCode).toBe(201);
  });

  test("while the process takes nobody in, no address leaves a bucket behind", async () => {
    const now = 1_800_000_000_000;
    const limiter = createLocalRateLimiter({ now: () => now });
    const names = new Set<string>();
    const noting: RateLimiter = {
      take(name, policy) {
        names.add(name);
        return limiter.take(name, policy);
      },
    };
    const gateway = await startTestGateway({
      config: { SIGNUP: "on" },
      clock: { now: () => now },
      rateLimiter: noting,
    });
    started.push(gateway);
    for (let i = 0; i < 50; i++) {
      await signUp(gateway, { email: "flood@example.com" }, `2001:db8:0:${i.toString(16)}::1`);
    }
    expect(names.size).toBe(20);
  });

  test.each([
    [{ email: ["x@example.com"] }, /body\.email: expected a string, got \["x@example\.com"\]/],
    [{ email: 7 }, /body\.email: expected a string, got 7/],
    [{ email: "x@example.com", label: ["a"] }, /body\.label: expected a string/],
    [{ email: "x@example.com", credits: 100 }, /body\.credits: there is no such field, expected email, label/],
    ["[]", /body: expected an object with email, label, got \[\]/],
  ])("%j is refused with what was expected", async (body, message) => {
    const refused = await signUp(await open(), body);
    expect(refused.statusCode).toBe(422);
    expect(refused.json().detail).toMatch(message);
  });

  test("refuses what is no e-mail address, and a body that is too large", async () => {
    const gateway = await open();
    for (const email of ["", "ada", "ada@", "@example.com", "ada@localhost", "cus_acme", "a@b@example.com", 7, null]) {
      expect((await signUp(gateway, { email })).statusCode, String(email)).toBe(422);
    }
    expect((await signUp(gateway, {})).statusCode).toBe(422);
    expect((await signUp(gateway, "{")).statusCode).toBe(400);
    expect((await signUp(gateway, { email: "a@example.com", label: "x".repeat(5_000) })).statusCode).toBe(413);
    expect(await gateway.db.query("SELECT * FROM customers")).toEqual([]);
  });

  test.each([
    ["ada@example.com", true],
    ["ada.lovelace+dream@mail.example.co.uk", true],
    ["ada@xn--bcher-kva.example", true],
    ["'; DROP TABLE customers --@example.com", false],
    ["ada\u0000@example.com", false],
    ["ada@example.com\n", false],
    ["ada@-example.com", false],
    ["ada@example..com", false],
    [`${"a".repeat(65)}@example.com`, false],
    [`a@${"b".repeat(60)}.${"c".repeat(60)}.${"d".repeat(60)}.${"e".repeat(60)}.${"f".repeat(60)}.com`, false],
  ])("%j is an address: %s", (text, expected) => {
    expect(isEmail(text)).toBe(expected);
  });
});
