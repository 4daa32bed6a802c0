import { afterAll, beforeAll, expect, test, vi } from "vitest";

import { readToken } from "#keys/token.ts";
import { verifyLedger } from "#ledger/verify.ts";

import { createTestDatabase, type TestDatabase } from "../support/postgres.ts";
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

test("keys list shows each key's state and limit", async () => {
  const key = await json("keys", "create", "--customer", "d@example.com", "--label", "robot arm");
  const keyId = String(key["key_id"]);
  expect((await cli("keys", "limit", keyId, "--rate", "5", "--burst", "10")).code).toBe(0);
  expect((await cli("keys", "list", "--customer", "d@example.com")).stdout).toMatch(/robot arm\s+5\/s, 10\s.*active/);
  expect((await cli("keys", "limit", keyId)).stdout).toContain("default limit");
  await json("keys", "revoke", keyId);
  expect((await cli("keys", "list", "--customer", "d@example.com")).stdout).toMatch(/default\s.*revoked/);
});

test("a key can be revoked by its first characters, or by the whole key", async () => {
  for (const name of ["prefix", "api_key"]) {
    const key = await json("keys", "create", "--customer", "e@example.com");
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

test.each([
  [["keys", "create"], /required option '--customer/],
  [["keys", "create", "--customer", "nonsense"], /customer id \(cus_…\) or an e-mail address/],
  [["keys", "create", "--customer", "a@example.com", "--initial-credits", "1.23456"], /dollar amount such as 25/],
  [["keys", "create", "--customer", "a@example.com", "--initial-credits", "-5"], /dollar amount such as 25/],
  [["keys", "revoke", "key_nope"], /no key key_nope/],
  [["keys", "limit", "key_nope", "--rate", "0"], /whole number from 1/],
  [["credits", "grant", "nobody@example.com", "5"], /no customer nobody@example.com/],
  [["predict", "--frame", "missing.png", "--actions", "missing.npy"], /Cannot read missing/],
  [["nonsense"], /unknown command/],
])("%s: says what was expected and ends with 1", async (args, message) => {
  const { code, stdout, stderr } = await cli(...args);
  expect(stderr).toMatch(message);
  expect(stderr).not.toMatch(/\n\s+at /); // no stack for what a person typed
  expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
});

test("after all of this the books balance", async () => {
  expect(await verifyLedger(database.db)).toEqual([]);
});
