/** The operator's commands as processes, one after the other, as somebody at a terminal would type them. */
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";

import { assertBooksBalance } from "#test/support/ledger.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

import { run } from "./command.ts";

vi.setConfig({ testTimeout: 60_000 });

let database: TestDatabase;
let env: Record<string, string>;
beforeAll(async () => {
  database = await createTestDatabase();
  env = { DATABASE_URL: database.url, DATA_DIR: "/nonexistent" };
  await ok("keys", "create", "--customer", "ada@example.com", "--initial-credits", "10.00");
});
afterAll(async () => {
  await assertBooksBalance(database.db);
  await database.drop();
});

/** What the command prints. */
async function ok(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(args, env);
  expect(code, stderr).toBe(0);
  return stdout;
}

const adjust = (...args: string[]): Promise<string> =>
  ok("credits", "adjust", "ada@example.com", ...args, "--operator", "grace");

/** What it says when it refuses. */
async function refused(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(args, env);
  expect(code, stdout).toBe(1);
  return stderr;
}

const lastAction = async (): Promise<unknown> =>
  (await database.db.query("SELECT operator, action, reason FROM operator_actions ORDER BY id DESC LIMIT 1"))[0];

describe("credits", () => {
  test("grant needs nothing but whom and how much, and is on record with the name of the user", async () => {
    expect(await ok("credits", "grant", "ada@example.com", "2.50")).toContain("$2.5000 credited");
    expect(await lastAction()).toMatchObject({
      operator: expect.stringMatching(/\w/) as string,
      action: "credits grant",
      reason: "not stated",
    });
  });

  test("a grant above $100,000 has to be meant", async () => {
    expect(await refused("credits", "grant", "ada@example.com", "100000.01")).toContain("expected --large");
  });

  test("grant with a reference is credited once, in JSON too", async () => {
    const grant = [
      "credits",
      "grant",
      "ada@example.com",
      "1",
      "--reference",
      "letter 7",
      "--reason",
      "sorry",
      "--json",
    ];
    expect(JSON.parse(await ok(...grant))).toMatchObject({ credited: true, reference: "grant_letter 7" });
    expect(JSON.parse(await ok(...grant))).toMatchObject({ credited: false, balance_mils: 135_000 });
  });

  test("a reference that stands for another amount is refused in a sentence", async () => {
    for (const [command, sign] of [
      ["grant", ""],
      ["adjust", "+"],
    ] as const) {
      const move = ["credits", command, "ada@example.com", "--reason", "x", "--reference", "r1"];
      await ok(...move, `${sign}0.01`);
      const said = await refused(...move, `${sign}0.02`);
      expect(said).toMatch(/_r1 stands for an? (credit|adjustment) of \$0\.0100 to cus_\w+, not for/);
      expect(said).not.toMatch(/^\s+at /m);
      await adjust("-0.01", "--reason", "back");
    }
  });

  test("the credit that a key comes with is on record, too", async () => {
    const made = await ok(
      "keys",
      "create",
      "--customer",
      "bea@example.com",
      "--initial-credits",
      "3",
      "--operator",
      "grace",
      "--json",
    );
    const { key_id, customer_id } = JSON.parse(made) as { key_id: string; customer_id: string };
    const [action] = await database.db.query(
      "SELECT operator, action, customer_id, reason, details FROM operator_actions WHERE reference = $1",
      [`initial_${key_id}`],
    );
    expect(action).toEqual({
      operator: "grace",
      action: "keys create",
      customer_id,
      reason: "initial credit",
      details: { amount_mils: 30_000 },
    });
  });

  test("adjust takes a sign", async () => {
    expect(await adjust("-3.50", "--reason", "counted twice")).toContain("Adjusted by $-3.5000");
    expect(await lastAction()).toEqual({ operator: "grace", action: "credits adjust", reason: "counted twice" });
    expect(await adjust("+0.0001", "--reason", "rounding")).toContain("has $10.0001");
    expect(await adjust("--reason", "rounding", "-0.0001")).toContain("has $10.0000");
  });

  test("adjust wants a reason, an amount and a balance that covers it", async () => {
    expect(await refused("credits", "adjust", "ada@example.com", "-1")).toContain("--reason");
    expect(await refused("credits", "adjust", "ada@example.com", "0", "--reason", "x")).toContain("other than zero");
    expect(await refused("credits", "adjust", "ada@example.com", "--5", "--reason", "x")).toMatch(/expected|unknown/);
    expect(await refused("credits", "adjust", "ada@example.com", "-11", "--reason", "x")).toContain("has $10.0000");
    expect(await refused("credits", "adjust", "bob@example.com", "-1", "--reason", "x")).toContain("no customer bob");
  });
});

describe("prices", () => {
  test("a rise is refused with the earliest date, scheduled after it, and listed", async () => {
    expect(await refused("prices", "set", "6", "--list", "--reason", "costs")).toMatch(
      /earliest date for this change is 20\d\d-/,
    );
    const from = new Date(Date.now() + 31 * 86_400_000).toISOString().slice(0, 10);
    expect(await ok("prices", "set", "6", "--list", "--from", from, "--reason", "costs")).toContain(
      `the list: 6 mils ($0.0006) a frame from ${from}T00:00:00.000Z`,
    );
    const list = await ok("prices", "list");
    expect(list).toMatch(/list +5 +0\.0005 +the beginning +in force/);
    expect(list).toMatch(new RegExp(`list +6 +0\\.0006 +${from}T\\S+ +scheduled`));
  });

  test("a customer's own price begins at once, and its end needs notice or an override that is kept", async () => {
    const own = ["--customer", "ada@example.com", "--reason", "commitment"];
    await ok("prices", "set", "3", ...own);
    expect(await refused("prices", "end", ...own)).toContain("would pay 5 mils a frame instead of 3");
    await ok("prices", "end", ...own, "--override-notice", "asked for it");
    const rows = JSON.parse(await ok("prices", "list", "--customer", "ada@example.com", "--json")) as unknown[];
    expect(rows.at(-1)).toMatchObject({ mils_per_frame: null, state: "in force", override_reason: "asked for it" });
  });

  test("whose price it is has to be said, and that 0 is meant", async () => {
    expect(await refused("prices", "set", "4", "--reason", "x")).toContain("either --customer <id|email>, or --list");
    expect(await refused("prices", "set", "0", "--list", "--reason", "x")).toContain("expected --free");
  });

  test.for(["0.5", "-1", "many"])("%s is no price", async (text) => {
    expect(await refused("prices", "set", text, "--reason", "x")).toMatch(/whole number|unknown option/);
  });

  test.for(["01/02/2030", "2027-02-30", "2030-02-29T00:00Z"])(
    "%s, another day elsewhere or none at all, is refused",
    async (from) => {
      expect(await refused("prices", "set", "4", "--list", "--reason", "x", "--from", from)).toContain(
        "expected a date",
      );
      const end = ["prices", "end", "--customer", "ada@example.com", "--reason", "x", "--from", from];
      expect(await refused(...end)).toContain("expected a date");
    },
  );
});

describe("customers", () => {
  test("show says it all, to a person and to a program", async () => {
    const shown = await ok("customers", "show", "ada@example.com");
    expect(shown).toContain("Balance    $10.0000 (100000 mils)");
    expect(shown).toMatch(/adjustment +-3\.5000/);
    expect(shown).toMatch(/grace +credits adjust +counted twice/);
    const json = JSON.parse(await ok("customers", "show", "ada@example.com", "--json")) as Record<string, unknown>;
    expect(json).toMatchObject({ email: "ada@example.com", balance_mils: 100_000, debt_mils: 0, mils_per_frame: 5 });
    expect(await refused("customers", "show", "bob@example.com")).toContain("no customer bob@example.com");
  });

  test("weight sets the share in dispatch, on record, and takes nothing but 1 to 100", async () => {
    const reason = ["--reason", "pays for two shares", "--operator", "grace"];
    expect(await ok("customers", "weight", "ada@example.com", "2", ...reason)).toMatch(/weight 2 .* it was 1\./);
    expect(await lastAction()).toEqual({
      operator: "grace",
      action: "customers weight",
      reason: "pays for two shares",
    });
    expect(await ok("customers", "show", "ada@example.com")).toContain("Weight     2 in dispatch");
    const json = JSON.parse(await ok("customers", "weight", "ada@example.com", "1", "--json", ...reason)) as object;
    expect(json).toMatchObject({ before: 2, weight: 1 });
    for (const wrong of ["0", "101", "1.5", "much"]) {
      const said = await refused("customers", "weight", "ada@example.com", wrong, ...reason);
      expect(said).toContain("expected a whole number from 1 to 100");
    }
    expect(await refused("customers", "weight", "bob@example.com", "2", ...reason)).toContain("no customer bob");
  });

  test("close ends every key and makes no more; reopen lets there be new ones", async () => {
    expect(await ok("customers", "close", "ada@example.com", "--reason", "asked to")).toContain("1 keys revoked");
    expect(await lastAction()).toMatchObject({ action: "customers close", reason: "asked to" });
    expect(await ok("customers", "list")).toMatch(/ada@example\.com +\$10\.0000 .*closed/);
    expect(await refused("keys", "create", "--customer", "ada@example.com")).toMatch(/closed/);
    await ok("customers", "reopen", "ada@example.com", "--reason", "came back");
    await ok("keys", "create", "--customer", "ada@example.com");
  });
});
