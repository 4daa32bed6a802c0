import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, expect, test, vi } from "vitest";

import { signUp } from "#keys/self-service.ts";
import { readToken } from "#keys/token.ts";
import { verifyLedger } from "#ledger/verify.ts";

import { createTestDatabase, type TestDatabase } from "../support/postgres.ts";
import { startStripeStandIn, TEST_SECRET_KEY } from "../support/stripe/stand-in.ts";
import { type Ran, run } from "./command.ts";

/** A command is a process, and a busy machine takes seconds to start one. */
vi.setConfig({ testTimeout: 90_000 });

let database: TestDatabase;
beforeAll(async () => {
  database = await createTestDatabase();
});
afterAll(() => database.drop());

const cli = (...args: string[]): Promise<Ran> => run(args, { DATABASE_URL: database.url, LOG_LEVEL: "trace" });

async function json(...args: string[]): Promise<Record<string, unknown>> {
  const { code, stdout, stderr } = await cli(...args, "--json");
  expect({ code, stderr: code === 0 ? "" : stderr }).toEqual({ code: 0, stderr: "" });
  return JSON.parse(stdout) as Record<string, unknown>;
}

test("keys create --json prints the key and whose it is, and nothing else on stdout", async () => {
  const created = await json("keys", "create", "--customer", "a@example.com", "--initial-credits", "25.00");
  expect(created).toMatchObject({ balance_mils: 250_000, balance_usd: "25.0000", created_customer: true });
  expect(created["customer_id"]).toMatch(/^cus_/);
  expect(created["key_id"]).toMatch(/^key_/);
  expect(readToken(String(created["api_key"])).ok).toBe(true);
});

test("a second key of a customer shares the balance", async () => {
  const first = await json("keys", "create", "--customer", "b@example.com", "--initial-credits", "0.0245");
  const second = await json("keys", "create", "--customer", String(first["customer_id"]), "--label", "ci");
  expect(second).toMatchObject({ customer_id: first["customer_id"], balance_mils: 245, created_customer: false });
});

test("a key is printed once, to the terminal that minted it, and is never logged or listed", async () => {
  const { code, stdout, stderr } = await cli("keys", "create", "--customer", "c@example.com");
  expect(code).toBe(0);
  const [key = ""] = /dre_[a-z2-7]{43}/.exec(stdout) ?? [];
  expect(readToken(key).ok).toBe(true);
  expect(stdout.split(key)).toHaveLength(2);
  expect(stdout).toContain("shown this once");
  expect(stderr).not.toContain(key);
  const listed = await cli("keys", "list", "--customer", "c@example.com");
  expect(listed.stdout).toContain(key.slice(0, 11));
  expect(listed.stdout + listed.stderr).not.toContain(key);
});

test("keys create takes a limit, an end and a label, and keys list shows them", async () => {
  const limits = ["--rate", "7", "--burst", "9", "--expires", "30d", "--label", "robot"];
  const key = await json("keys", "create", "--customer", "limits@example.com", ...limits);
  const days = (Date.parse(String(key["expires_at"])) - Date.now()) / 86_400_000;
  expect(days).toBeGreaterThan(29.9);
  expect(days).toBeLessThanOrEqual(30);
  await json("keys", "create", "--customer", "limits@example.com", "--expires", "2031-12-31");

  const [first, second] = (await json("keys", "list", "--customer", "limits@example.com")) as unknown as [
    object,
    object,
  ];
  expect(first).toMatchObject({
    key_id: key["key_id"],
    prefix: key["prefix"],
    label: "robot",
    rate_per_s: 7,
    burst: 9,
    last_used_at: null,
    expires_at: key["expires_at"],
    revoked_at: null,
    state: "active",
  });
  expect(second).toMatchObject({ expires_at: "2031-12-31T00:00:00.000Z", rate_per_s: null });

  await database.db.query("UPDATE api_keys SET expires_at = now() WHERE id = $1", [key["key_id"]]);
  await database.db.query("INSERT INTO api_key_usage VALUES ($1, '2026-11-22 10:09:08Z')", [key["key_id"]]);
  const { stdout } = await cli("keys", "list", "--customer", "limits@example.com");
  expect(stdout).toMatch(/KEY ID .*LABEL +LIMIT +CREATED +LAST USED +EXPIRES +STATE/);
  expect(stdout).toMatch(/robot +7\/s, 9 +\S+ +2026-11-22 10:09 .*expired/);
  expect(stdout).toMatch(/default +\S+ +never +2031-12-31 00:00 +active/);
});

test("a closed customer gets no key", async () => {
  await json("keys", "create", "--customer", "closed@example.com");
  await database.db.query("UPDATE customers SET closed_at = now() WHERE email = 'closed@example.com'");
  const { code, stdout, stderr } = await cli("keys", "create", "--customer", "closed@example.com");
  expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
  expect(stderr).toMatch(/customer cus_\w+ is closed/);
});

test("with Stripe configured a new customer is one there, too; a further key of it makes no second", async () => {
  const stripe = await startStripeStandIn();
  const env = { DATABASE_URL: database.url, STRIPE_SECRET_KEY: TEST_SECRET_KEY, STRIPE_API_BASE: stripe.url };
  for (const times of [1, 2]) {
    const { code, stderr } = await run(["keys", "create", "--customer", "stripe@example.com"], env);
    expect({ code, stderr }, `time ${times}`).toEqual({ code: 0, stderr: "" });
  }
  expect(stripe.requests.filter(({ method }) => method === "POST").map(({ path }) => path)).toEqual(["/v1/customers"]);
  const [row] = await database.db.query<{ stripe_customer_id: string }>(
    "SELECT stripe_customer_id FROM customers WHERE email = 'stripe@example.com'",
  );
  expect(row?.stripe_customer_id).toMatch(/^cus_/);
  await stripe.stop();
});

test("with a Stripe that cannot be reached the key is made all the same, with a warning", async () => {
  const args = ["keys", "create", "--customer", "nostripe@example.com", "--json"];
  const { code, stdout, stderr } = await run(args, {
    DATABASE_URL: database.url,
    STRIPE_SECRET_KEY: "sk_test_0123456789",
    STRIPE_API_BASE: "http://127.0.0.1:9",
  });
  expect(code).toBe(0);
  expect(readToken(String((JSON.parse(stdout) as Record<string, unknown>)["api_key"])).ok).toBe(true);
  expect(stderr).toMatch(/^warning: the key is made; no customer at Stripe yet .*the first top-up makes it$/m);
  expect(stderr).not.toContain("sk_test_0123456789");
});

test("keys list shows each key's state and limit", async () => {
  const key = await json("keys", "create", "--customer", "d@example.com", "--label", "robot arm");
  const keyId = String(key["key_id"]);
  expect((await cli("keys", "limit", keyId, "--rate", "5", "--burst", "10")).code).toBe(0);
  expect((await cli("keys", "list", "--customer", "d@example.com")).stdout).toMatch(/robot arm\s+5\/s, 10\s.*active/);
  expect((await cli("keys", "limit", keyId)).stdout).toContain("default limit");
  await json("keys", "revoke", keyId);
  expect((await cli("keys", "list", "--customer", "d@example.com")).stdout).toMatch(/default\s.*revoked/);
});

test("a key can be limited and revoked by its first characters, or by the whole key", async () => {
  for (const name of ["prefix", "api_key"]) {
    const key = await json("keys", "create", "--customer", "e@example.com");
    const limited = await json("keys", "limit", String(key[name]), "--burst", "3");
    expect(limited).toMatchObject({ key_id: key["key_id"], rate_per_s: null, burst: 3 });
    expect(await json("keys", "revoke", String(key[name]))).toMatchObject({ key_id: key["key_id"] });
  }
});

test("credits grant adds to the balance, and once only under one reference", async () => {
  await json("keys", "create", "--customer", "f@example.com");
  expect(await json("credits", "grant", "f@example.com", "5")).toMatchObject({ credited: true, balance_mils: 50_000 });
  const grant = ["credits", "grant", "f@example.com", "5.00", "--reference", "INV-1"];
  expect(await json(...grant)).toMatchObject({ credited: true, balance_mils: 100_000 });
  expect(await json(...grant)).toMatchObject({ credited: false, balance_mils: 100_000 });
});

test("initial credits are on record with who gave them", async () => {
  const give = ["keys", "create", "--customer", "given@example.com", "--initial-credits", "3", "--operator", "grace"];
  const { key_id, customer_id } = await json(...give);
  const actions = await database.db.query(
    "SELECT operator, action, reference FROM operator_actions WHERE customer_id = $1",
    [customer_id],
  );
  expect(actions).toEqual([{ operator: "grace", action: "keys create", reference: `initial_${String(key_id)}` }]);
});

test("whoever signed up with an address is not who an operator names by it, until that is confirmed", async () => {
  const { customer_id } = await signUp(database.db, { email: "Victim@example.com" }, randomBytes);
  expect((await cli("customers", "list")).stdout).toMatch(
    new RegExp(`${customer_id} +\\(unverified\\) victim@example\\.com`),
  );
  expect((await cli("customers", "show", customer_id)).stdout).toContain("(unverified) victim@example.com");
  expect((await cli("keys", "list")).stdout).toContain(`${customer_id} (unverified) victim@example.com`);
  const granted = await cli("credits", "grant", "victim@example.com", "100");
  expect(granted.code).toBe(1);
  expect(granted.stderr).toContain(`Nobody has verified that victim@example.com is the address of ${customer_id}`);

  const confirmed = await cli(
    "customers",
    "confirm-email",
    customer_id,
    "--reason",
    "wrote from it",
    "--operator",
    "grace",
  );
  expect(confirmed.stdout).toContain(`victim@example.com names ${customer_id}`);
  expect(await json("credits", "grant", "victim@example.com", "1")).toMatchObject({ customer_id });
  expect((await cli("customers", "show", customer_id)).stdout).toMatch(/grace +customers confirm-email +wrote from it/);

  const other = await signUp(database.db, { email: "second@example.com" }, randomBytes);
  const created = await cli("keys", "create", "--customer", "second@example.com", "--initial-credits", "100");
  expect(created.stderr).toContain(`note: ${other.customer_id} signed up with second@example.com`);
  expect(created.stdout).not.toContain(other.customer_id);
});

test("a role that may not do what a command does is told whose DATABASE_URL to use", async () => {
  await json("keys", "create", "--customer", "role@example.com");
  const { code, stderr } = await run(["credits", "grant", "role@example.com", "1"], {
    DATABASE_URL: database.urlAs("gateway"),
  });
  expect(code).toBe(1);
  expect(stderr).toContain("permission denied for table operator_actions");
  expect(stderr).toContain("Run the command with the owner's DATABASE_URL.");
  expect(stderr).not.toMatch(/\n\s+at /);
});

test.each([
  [["keys", "create"], /required option '--customer/],
  [["keys", "create", "--customer", "nonsense"], /customer id \(cus_…\) or an e-mail address/],
  [["keys", "create", "--customer", "a@example.com", "--initial-credits", "1.23456"], /dollar amount such as 25/],
  [["keys", "create", "--customer", "a@example.com", "--initial-credits", "-5"], /dollar amount such as 25/],
  [["keys", "revoke", "key_nope"], /no key key_nope/],
  [["keys", "limit", "key_nope", "--rate", "0"], /whole number from 1/],
  [["keys", "limit", "key_nope"], /no key key_nope/],
  [["keys", "create", "--customer", "a@example.com", "--expires", "soon"], /days from now such as 30d/],
  [["keys", "create", "--customer", "a@example.com", "--expires", "2020-01-01"], /a time to come/],
  [["keys", "create", "--customer", "a@example.com", "--label", "two\nlines"], /label: expected at most 100/],
  [["keys", "revoke", `dre_${"a".repeat(42)}`], /The API key must have 47 characters, got 46/],
  [["credits", "grant", "nobody@example.com", "5"], /no customer nobody@example.com/],
  [
    ["predict", "--frame", "missing.png", "--actions", "missing.npy"],
    /Cannot read \/.+\/missing\.(png|npy): there is no such file/,
  ],
])("%s: says what was expected and ends with 1", async (args, message) => {
  const { code, stdout, stderr } = await cli(...args);
  expect(stderr).toMatch(message);
  expect(stderr).not.toMatch(/\n\s+at /); // no stack for what a person typed
  expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
});

test("after all of this the books balance", async () => {
  expect(await verifyLedger(database.db)).toEqual([]);
});
