/** The auditor on money from nowhere, and to nowhere: entries that are chained as they should be and that nothing allows. */
import { afterAll, beforeAll, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import { credit } from "#ledger/ledger.ts";
import { auditLedger, verifyLedger } from "#ledger/verify.ts";
import type { Database } from "#platform/database.ts";
import { grant, newCustomer, owe } from "#test/support/ledger.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

import { auditAfter, tamperWith } from "./tampering.ts";

let database: TestDatabase;
let db: Database;
/** Has 1,000 mils by a grant. */
let rich: string;
/** Owed 500 mils by a refunded payment, of which a grant "grant_part" of 200 paid a part: owes 300. */
let debtor: string;

beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
  rich = (await newCustomer(db, mils(0))).customer_id;
  await grant(db, { customer_id: rich, amount: mils(1_000), reference: "grant_rich" });
  debtor = (await newCustomer(db, mils(0))).customer_id;
  await owe(db, debtor, 5);
  await grant(db, { customer_id: debtor, amount: mils(200), reference: "grant_part" });
});
afterAll(() => database.drop());

test("finds nothing wrong with grants, payments taken back, and debt that was repaid from either account's view", async () => {
  expect(await verifyLedger(db)).toEqual([]);
  for (const customer of [rich, debtor]) expect((await auditLedger(db, { customer })).problems).toEqual([]);
});

test("notices a credit that nobody paid or granted", async () => {
  const problems = await auditAfter(db, (tx) =>
    credit(tx, { customer_id: rich, amount: mils(99_999_999), reference: "free_money", detail: "top-up" }),
  );
  expect(problems).toEqual([
    `${rich}/balance entry 2: credit free_money of 99999999 mils has neither a payment nor a recorded action of an operator`,
  ]);
});

const post = (whose: "$1" | "$2", account: string, kind: string, amount: number, reference: string): string =>
  `SELECT post_ledger_entry(${whose}, '${account}', '${kind}', ${amount}, '${reference}', 'x')`;

/** $1 is rich, $2 the debtor. */
const TAMPERINGS: readonly (readonly [what: string, statements: readonly string[], problem: RegExp])[] = [
  [
    "money out of nowhere, as a clawback",
    [post("$1", "balance", "clawback", 5_000, "nowhere")],
    /balance entry 2: clawback nowhere of 5000 mils, and there is no payment of that name/,
  ],
  [
    "money that went nowhere",
    [post("$1", "balance", "clawback", -400, "nowhere")],
    /balance entry 2: took 400 mils as nowhere, and the entry before it did not bring them in[^]*moved the balance by -400 mils and the debt by 0/,
  ],
  [
    "money that went nowhere under the name of what brought it",
    [post("$1", "balance", "clawback", -400, "grant_rich")],
    /cus_\w+: clawbacks grant_rich moved the balance by -400 mils and the debt by 0; without a payment both must be the same/,
  ],
  [
    "a debt, forgiven",
    [post("$2", "debt", "clawback", -300, "forgiven")],
    /clawbacks forgiven moved the balance by 0 mils and the debt by -300/,
  ],
  [
    "a debt, forgiven under the name of what paid a part of it",
    [post("$2", "debt", "clawback", -300, "grant_part")],
    /clawbacks grant_part moved the balance by -200 mils and the debt by -500/,
  ],
  [
    "a debt, forgiven in the name of the payment",
    ["SELECT post_ledger_entry($2, 'debt', 'clawback', -300, id, 'x') FROM payments"],
    /payment pi_\w+: says 500 mils clawed back, the ledger 200/,
  ],
  [
    "a debt out of nowhere",
    [post("$2", "debt", "clawback", 300, "nowhere")],
    /debt entry 3: clawback nowhere of 300 mils, and there is no payment of that name/,
  ],
  [
    "a debt that somebody else's money paid",
    [post("$1", "balance", "clawback", -300, "mine"), post("$2", "debt", "clawback", -300, "mine")],
    /took 300 mils as mine, and the entry before it did not[^]*clawbacks mine moved the balance by 0 mils and the debt by -300/,
  ],
  [
    "a credit of the debt",
    [post("$2", "debt", "credit", 100, "grant_debt")],
    /debt entry 3: is of kind credit, and nothing but a clawback moves a debt/,
  ],
  [
    "an adjustment of the debt",
    [post("$2", "debt", "adjustment", -300, "adjust_debt")],
    /debt entry 3: is of kind adjustment, and nothing but a clawback moves a debt/,
  ],
  [
    "an operator's action that was carried out twice",
    [post("$1", "balance", "adjustment", 1_000, "grant_rich")],
    /balance entry 2: grant_rich moved money before, in cus_\w+\/balance entry 1/,
  ],
  [
    "an operator's action that does not say how much",
    ["UPDATE operator_actions SET details = '{}' WHERE reference = 'grant_rich'"],
    /balance entry 1: moved 1000 mils, the operator's action grant_rich says nothing/,
  ],
  [
    "a grant whose record was removed",
    ["DELETE FROM operator_actions WHERE reference = 'grant_rich'"],
    /balance entry 1: credit grant_rich of 1000 mils has neither a payment nor a recorded action/,
  ],
  [
    "the initial credit of a key that nobody gave",
    [post("$1", "balance", "credit", 100, "initial_key_0123456789abcdef")],
    /credit initial_key_0123456789abcdef of 100 mils has neither a payment nor a recorded action/,
  ],
  [
    "a customer who takes the local one's credit",
    [post("$1", "balance", "credit", 10_000_000, "local_credit")],
    /credit local_credit of 10000000 mils has neither/,
  ],
  [
    "somebody else's payment",
    ["SELECT post_ledger_entry($1, 'balance', 'clawback', 500, id, 'x') FROM payments"],
    /balance entry 2: payment pi_\w+ is of cus_\w+/,
  ],
];

test.each(TAMPERINGS)("notices %s", async (_, statements, problem) => {
  const problems = await auditAfter(db, async (tx) => {
    for (const statement of statements) {
      await tx.query(statement.replaceAll("$1", `'${rich}'`).replaceAll("$2", `'${debtor}'`));
    }
  });
  expect(problems.join("\n")).toMatch(problem);
  expect(await verifyLedger(db)).toEqual([]); // and it was undone
});

/** Moves the beginning of the records. */
const began = (when: string): string => `UPDATE operator_actions SET at = now() ${when} WHERE action = 'begin'`;

test("grants of before operators' actions were recorded need none, later ones do", async () => {
  const forget = "DELETE FROM operator_actions WHERE reference = 'grant_rich'";
  const [later, before] = [began("+ interval '1 hour'"), began("- interval '1 hour'")];
  expect(await auditAfter(db, tamperWith(`${forget}; ${later}`, rich))).toEqual([]);
  expect(await auditAfter(db, tamperWith(`${forget}; ${before}`, rich))).toHaveLength(1);
  // A moment is one everywhere: a server elsewhere, to which the database was moved, believes no more and no less.
  for (const zone of ["America/Los_Angeles", "Asia/Tokyo"]) {
    const there = `SET LOCAL timezone = '${zone}'`;
    expect(await auditAfter(db, tamperWith(`${there}; ${forget}; ${later}`, rich))).toEqual([]);
    expect(await auditAfter(db, tamperWith(`${there}; ${forget}; ${before}`, rich))).toHaveLength(1);
  }
});

test("the local customer has its credit from nobody", async () => {
  const problems = await auditAfter(db, async (tx) => {
    await tx.query("INSERT INTO customers (id) VALUES ('cus_local')");
    await tx.query(
      "INSERT INTO accounts (customer_id, account) VALUES ('cus_local', 'balance'), ('cus_local', 'debt')",
    );
    const local = { customer_id: "cus_local", reference: "local_credit", detail: "local credit" };
    await credit(tx, { ...local, amount: mils(10_000_000) });
  });
  expect(problems).toEqual([]);
});
