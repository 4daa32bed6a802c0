/** The verifier that customers run on their statements, in Python: on real ones, and on ones that were changed. */
import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import { afterAll, beforeAll, expect, test } from "vitest";

import type { CustomerId } from "#contract/ids.ts";
import type { Database } from "#platform/database.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

import { customerOfSeveralMonths, MONTHS, statementText } from "./statement-fixture.ts";

const VERIFIER = "examples/verify_statement.py";

let database: TestDatabase;
let db: Database;
let folder: string;
let customer: CustomerId;
beforeAll(async () => {
  database = await createTestDatabase();
  ({ db } = database);
  folder = await mkdtemp(join(tmpdir(), "dream-statement-"));
  customer = await customerOfSeveralMonths(db);
});
afterAll(async () => {
  await database.drop();
  await rm(folder, { recursive: true, force: true });
});

const textOf = (format: "json" | "csv", from: string, to: string): Promise<string> =>
  statementText(db, customer, format, from, to);

const everyMonth = (format: "json" | "csv"): Promise<string[]> =>
  Promise.all(MONTHS.map(([from, to]) => textOf(format, from, to)));

const run = promisify(execFile);

/** Its last line and exit code, over files with these texts. */
async function verdict(...texts: string[]): Promise<{ code: number; said: string }> {
  const files = await Promise.all(
    texts.map(async (text, index) => {
      const file = join(folder, `statement-${index}`);
      await writeFile(file, text);
      return file;
    }),
  );
  return run("python3", [VERIFIER, ...files]).then(
    ({ stdout }) => ({ code: 0, said: stdout.trim() }),
    (error: { code: number; stderr: string }) => ({ code: error.code, said: error.stderr.trim() }),
  );
}

test("finds real statements right, in both forms, mixed, and over months", async () => {
  const ok = `OK: 7 entries, balance ${2n ** 60n + 1n} mils, debt 0 mils`;
  const [json, csv] = [await everyMonth("json"), await everyMonth("csv")];
  expect(await verdict(...json)).toEqual({ code: 0, said: ok });
  expect(await verdict(...csv)).toEqual({ code: 0, said: ok });
  expect(await verdict(...json.map((text, index) => (index % 2 === 0 ? text : (csv[index] ?? ""))))).toEqual({
    code: 0,
    said: ok,
  });
});

test("says from which entry on it verified, where the first file is not the first month", async () => {
  for (const format of ["json", "csv"] as const) {
    const [, november = ""] = await everyMonth(format);
    const since = "balance from entry 2 (balance 500); what came before is not verified";
    expect(await verdict(november)).toEqual({
      code: 0,
      said: `OK: 4 entries, balance 0 mils, debt 900 mils\n${since}`,
    });
  }
});

test("says which file was not complete when the next one does not continue it, or when it is the last", async () => {
  for (const format of ["json", "csv"] as const) {
    const partOf = await statementText(db, customer, format, "2025-11", "2025-11-30T12:00:00Z", false);
    const [october = "", , december = ""] = await everyMonth(format);
    const again = /\(\S+statement-1 was not complete: get that month again\)$/;
    const followed = await verdict(october, partOf, december);
    expect(followed).toEqual({ code: 1, said: expect.stringMatching(again) as string });
    expect(followed.said).toMatch(/statement-2: balance opens with \(4, /);
    const last = await verdict(october, partOf);
    expect(last).toEqual({ code: 0, said: expect.stringMatching(again) as string });
    expect(last.said).toContain("more entries may come in that month");
  }
});

const TAMPERINGS: readonly (readonly [
  what: string,
  format: "json" | "csv",
  from: string | RegExp,
  to: string,
  said: RegExp,
])[] = [
  ["an amount", "json", '"amount_mils":-70', '"amount_mils":-7', /balance entry 3 is not what was hashed/],
  ["an amount", "csv", ",-70,", ",-7,", /balance entry 3 is not what was hashed/],
  ["a text", "csv", "'+1", "'+2", /balance entry 3 is not what was hashed/],
  ["a time", "json", "2025-11-30T23:59:59.999999Z", "2025-11-30T23:59:59.999998Z", /balance entry 4 is not what/],
  ["an entry, removed", "json", /\{"seq":3,[^}]*\},\n/, "", /balance entry 4 follows entry 2/],
  ["an entry, removed", "csv", /cus_\w+,balance,3,[^]*?(?=cus_\w+,balance,4)/, "", /balance entry 4 follows entry 2/],
  ["the last entry, removed", "json", /,\n\{"seq":4,[^}]*\}/, "", /balance closes with \(4, /],
  [
    "a closing balance",
    "json",
    '"closing":{"seq":4,"balance_mils":0',
    '"closing":{"seq":4,"balance_mils":9',
    /balance closes with/,
  ],
  ["the debt account, removed", "json", /,\n\{"account":"debt"[^]*(?=\]\}\n$)/, "", /not whole/],
  ["the end, cut off", "csv", /cus_\w+,debt,1,,closing[^]*$/, "", /not whole/],
  ["the end, cut off", "json", /\]\}\n$/, "", /statement-0: /],
  [
    "another customer's account",
    "csv",
    /cus_\w+,debt,1,2025/,
    "cus_other,debt,1,2025",
    /line \d+: \('cus_other', 'debt'\) is not between its opening and closing/,
  ],
  [
    "another customer's entry",
    "json",
    '{"seq":3,',
    '{"customer_id":"cus_other","seq":3,',
    /balance entry 3 is of another/,
  ],
  [
    "another account's entry",
    "json",
    '{"seq":3,',
    '{"account":"debt","seq":3,',
    /balance entry 3 is of another account/,
  ],
  ["the customer of one account", "csv", /cus_\w+(,debt,)/g, "cus_other$1", /the statement is of two customers/],
  [
    "the entries before a second opening",
    "csv",
    /(cus_\w+,balance),3,/,
    `$1,2,,opening,,999999,,,2025-11,,${"ab".repeat(32)}\r\n$1,3,`,
    /line \d+ opens an account before the one before it is closed/,
  ],
  [
    "an entry after the last closing",
    "csv",
    /$/,
    "cus_x,debt,2,,credit,7,7,,x,x,,\r\n",
    /is not between its opening and/,
  ],
  [
    "an entry after the first closing",
    "csv",
    /(?=cus_\w+,debt,0,,opening)/,
    "cus_x,balance,5,,credit,7,7,,x,x,,\r\n",
    /is not between/,
  ],
  ["a second closing", "csv", /(cus_\w+,balance,4,,closing.*\r\n)/, "$1$1", /is not between its opening and closing/],
  ["a second debt account", "csv", /(cus_\w+,debt,[^]*)$/, "$1$1", /the statement is not whole/],
  ["a cell too few", "csv", /,\w+(\r\n)(?=cus_\w+,balance,3,)/, "$1", /too many cells, or too few/],
  ["a cell too many", "csv", /(\r\n)(?=cus_\w+,balance,3,)/, ",x$1", /too many cells, or too few/],
  ["a column that stands twice", "csv", "rollout_id", "amount_mils", /a name stands twice/],
  [
    "a name that stands twice",
    "json",
    '"amount_mils":-70',
    '"amount_mils":-7,"amount_mils":-70',
    /a name stands twice/,
  ],
  ["a list of entries that stands twice", "json", '"entries":[', '"entries":[],"entries":[', /a name stands twice/],
];

test.each(TAMPERINGS)("names %s that was changed in a file (%s)", async (_, format, from, to, said) => {
  const text = await textOf(format, "2025-11", "2025-12");
  const changed = text.replace(from, to);
  expect(changed).not.toBe(text);
  const result = await verdict(changed);
  expect(result.code).toBe(1);
  expect(result.said).toMatch(said);
});

test("names a month that is missing between two, or stands in the wrong place", async () => {
  const [october = "", november = "", , january = ""] = await everyMonth("json");
  expect(await verdict(october, january)).toMatchObject({
    code: 1,
    said: expect.stringMatching(/statement-1: balance opens with \(4, /),
  });
  expect(await verdict(november, october)).toMatchObject({ code: 1, said: expect.stringContaining("opens with") });
});

test("begins with nothing", async () => {
  const text = await textOf("json", "2025-10", "2025-11");
  const forged = text.replaceAll('{"seq":0,"balance_mils":0', '{"seq":0,"balance_mils":9');
  expect((await verdict(forged)).said).toMatch(/balance begins with \(0, 9, ''\) and not with nothing$/);
});

test("takes nothing else for a statement", async () => {
  for (const text of ["", "{}", "[]", "hello", '{"accounts":[]}']) {
    expect(await verdict(text)).toEqual({
      code: 2,
      said: expect.stringMatching(/^\S+: no statement that can be read \(it .*\)$/) as string,
    });
  }
  expect((await verdict()).code).toBe(1);
});
