import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, expect, test } from "vitest";

import { addressOf, addSignedUpCustomer, confirmEmail, findCustomer, signedUpWith } from "#keys/customers.ts";
import { createKey, listKeys } from "#keys/keys.ts";
import type { Database } from "#platform/database.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

let database: TestDatabase;
let db: Database;
beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
});
afterAll(() => database.drop());

const signedUp = (address: string) => db.transaction((tx) => addSignedUpCustomer(tx, address, randomBytes));
const confirm = (customerId: string) => db.transaction((tx) => confirmEmail(tx, customerId));

test("an address names one customer in every spelling, also with letters beyond ASCII", async () => {
  // Whatever this cluster's locale makes of É: what we store and look up is spelled by us.
  const first = await createKey(db, { customer: "\u00c9milie@\u00c9cole.fr" }, randomBytes);
  const second = await createKey(db, { customer: "\u00e9milie@\u00e9cole.fr" }, randomBytes);
  expect(second).toMatchObject({ customer_id: first.customer_id, created_customer: false });
  for (const spelling of ["\u00c9MILIE@\u00c9COLE.FR", "\u00e9milie@\u00e9cole.fr"]) {
    expect(await findCustomer(db, spelling)).toBe(first.customer_id);
    expect(await listKeys(db, spelling)).toHaveLength(2);
  }
});

test("an address from a sign-up names nobody, until an operator confirms it", async () => {
  const [one, two] = [await signedUp("Ada@example.com"), await signedUp("ada@example.com")];
  expect(await findCustomer(db, "ada@example.com")).toBe(null);
  expect((await signedUpWith(db, "ADA@example.com")).sort()).toEqual([one, two].sort());

  expect(await confirm(one)).toEqual({ email: "ada@example.com" });
  expect(await findCustomer(db, "Ada@Example.com")).toBe(one);
  expect(await signedUpWith(db, "ada@example.com")).toEqual([two]);
});

test("is confirmed for one customer at most, and only where there is something to confirm", async () => {
  const [late, named] = [
    await signedUp("bob@example.com"),
    await createKey(db, { customer: "bob@example.com" }, randomBytes),
  ];
  await expect(confirm(late)).rejects.toMatchObject({ code: "invalid_request", message: /names another customer/ });
  await expect(confirm(named.customer_id)).rejects.toMatchObject({ message: /no address to confirm/ });
  await expect(confirm("cus_nobody")).rejects.toMatchObject({ code: "not_found" });
  expect(await findCustomer(db, "bob@example.com")).toBe(named.customer_id);
});

test("listings tell an address that nobody verified from one that names the customer", () => {
  expect(addressOf({ email: "a@example.com", signup_email: null })).toBe("a@example.com");
  expect(addressOf({ email: null, signup_email: "a@example.com" })).toBe("(unverified) a@example.com");
  expect(addressOf({ email: null, signup_email: null })).toBe("");
});
