/** `economics` and `pools` as an operator types and reads them. */
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";

import { economicsText } from "#cli/economics-report.ts";
import { readMonth } from "#economics/month.ts";
import { monthOf } from "#economics/month-range.ts";
import { listPoolEvents } from "#pools/events.ts";
import { addPoolHours } from "#pools/hours.ts";
import { writePool } from "#pools/pool.ts";
import { readPoolSettings } from "#pools/settings.ts";
import { settle } from "#rollouts/settle.ts";
import { accept, dispatch, newCustomer, succeeded } from "#test/support/ledger.ts";
import { poolRow } from "#test/support/pools.ts";
import { createTestDatabase, type TestDatabase } from "#test/support/postgres.ts";

import { run } from "./command.ts";

vi.setConfig({ testTimeout: 60_000 });

const POOL = poolRow({
  model: "pusht-small",
  desired: 3,
  reason: {
    kind: "scale_out",
    start: 2,
    waiting_rollouts: 40,
    work_s: 200,
    workers: 1,
    sustained_workers: 0,
    wall_s: 200,
    break_even_s: 140,
  },
  ready: 1,
  waiting_rollouts: 40,
  waiting_samples: 40,
  active_rollouts: 2,
  active_samples: 2,
  waiting_work_s: 192,
  samples_per_worker: 4,
  seconds_per_sample: 4,
  maximum: 8,
});

let database: TestDatabase;
let customer: string;
beforeAll(async () => {
  database = await createTestDatabase();
  const { db } = database;
  await writePool(db, 0n, POOL);
  const key = await newCustomer(db);
  customer = key.customer_id;
  const { id } = await accept(db, key, { k: 2 });
  await dispatch(db, id);
  await settle(db, id, 1, succeeded(98, 5_240));
  const seconds = { starting_s: 70, ready_s: 10, busy_s: 8, draining_s: 0, cold_starts: 1 };
  await addPoolHours(db, 0n, POOL.model, new Date(), seconds);
});
afterAll(() => database.drop());

async function ok(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(args, { DATABASE_URL: database.url, DATA_DIR: "/nonexistent" });
  expect(code, stderr).toBe(0);
  return stdout;
}

async function refused(...args: string[]): Promise<string> {
  const { code, stderr } = await run(args, { DATABASE_URL: database.url, DATA_DIR: "/nonexistent" });
  expect(code).not.toBe(0);
  return stderr;
}

test("the month is a table, where the rent went, and the ways out of a margin below the floor", async () => {
  const now = new Date("2026-11-20T12:00:00Z");
  // When the rollout of this test ended, by the database's clock.
  const [row] = await database.db.query<{ at: Date }>("SELECT finished_at AS at FROM rollouts");
  const month = monthOf(row?.at ?? new Date(0));
  const text = economicsText(await readMonth(database.db, { month, gpuUsdPerHour: 3.95 }, now), now);
  expect(text.split("\n").map((line) => line.replaceAll(/ {2,}/g, "  "))).toEqual(
    expect.arrayContaining([
      `${month}, so far · $3.95 an accelerator and hour · list price 5 mils a frame`,
      // 80 s at $3.95 an hour are $0.0878, of 98 frames for $0.049.
      "pusht-small  1  98  $0.0490  5.24 s  0.00 s  1  8 s  1 min 10 s  2 s  $0.09  $0.000896  -79.1 %",
      "published  2.62 s  1.38 s  $0.000105  79.0 %",
      `pusht-small  ${"█".repeat(4)}${"▒".repeat(35)}░  working 10.0 %  starting 87.5 %  idle 2.5 %`,
      "! pusht-small: the margin of -79.1 % is below the floor of 70.0 % (so few frames tell little: one cold start decides). Any of these leads back to it:",
      "  - re-optimise the engine: the same frames with 16.7 % of the worker seconds".replaceAll(/ {2,}/g, "  "),
      "  - raise the price to 30 mils a frame, with 30 days' notice: from 2026-12-20 at the earliest (dream-engine prices set)",
    ]),
  );
});

test("economics prints the running month, and as JSON what the route answers", async () => {
  expect(await ok("economics")).toContain("pusht-small");
  const json = JSON.parse(await ok("economics", "--month", "2026-01", "--json"));
  expect(json).toMatchObject({ month: "2026-01", complete: true, pools: [{ model: "pusht-small", frames: 0 }] });
});

test("a reason to look at the price again that no figure shows is an operator's word, once a month", async () => {
  const note = ["economics", "note", "pusht-small", "gpu-class", "--note", "B200 at $6.25", "--by", "grace"];
  expect(await ok(...note)).toBe("Recorded for pusht-small.\n");
  expect(await ok(...note)).toContain("has that reason on record for this month already");
  const shown = JSON.parse(await ok("pools", "show", "pusht-small", "--json"));
  expect(shown).toMatchObject({
    pool: { model: "pusht-small", desired: 3 },
    month: { frames: 98, revenue_mils: 490, warm: { break_even_frames: 5_680_000 } },
    events: [{ kind: "reprice", by: "grace", detail: { trigger: "gpu_class", note: "B200 at $6.25" } }],
  });
});

describe("pools", () => {
  test("says what each pool has and wants, and why", async () => {
    expect(await ok("pools")).toMatch(/pusht-small +local +1 +3 +– +40 +2 /);
    await writePool(database.db, 0n, { ...POOL, looked_at: new Date(Date.now() + 60_000) });
    const shown = await ok("pools", "show", "pusht-small");
    expect(shown).toContain("cold start   1 min 10 s expected");
    expect(shown).toContain("longer than the 140 s from which on another start pays: starting 2");
    expect(shown).toContain("About $2,840 a month each");
    expect(shown).toMatch(/no +gap-frames: 0 frames .* of 5,680,000/);
    expect(await refused("pools", "show", "other")).toContain("There is no pool other; there are: pusht-small.");
  });

  test("are kept warm by an operator's word, which is on record and can be taken back", async () => {
    const on = ["pools", "always-warm", "pusht-small", "on", "--note", "contract 7"];
    expect(await refused(...on)).toContain("Expected --workers <n> and --why complaint|gap-frames|commitment with on.");
    expect(await readPoolSettings(database.db)).toEqual([]);
    const said = await ok(...on, "--workers", "2", "--why", "commitment", "--by", "grace");
    expect(said).toContain("2 always warm, about $5,680 a month");
    expect(said).toContain("Note that the trigger is not met");
    expect(await readPoolSettings(database.db)).toMatchObject([
      { model: "pusht-small", always_warm_workers: 2, set_by: "grace", why: "commitment: contract 7" },
    ]);
    const terms = ["--customer", customer, "--frames", "2500000", "--asks-warm", "--note", "contract 7"];
    await ok("pools", "commitment", "pusht-small", ...terms, "--by", "grace");
    await ok("pools", "complaint", "pusht-small", "--customer", customer, "--note", "ticket 17", "--by", "grace");
    const shown = await ok("pools", "show", "pusht-small");
    expect(shown).toContain(`met  commitment: ${customer} committed to 2,500,000 frames a month`);
    expect(shown).toMatch(new RegExp(`met +complaint: ${customer} complained on \\d{4}-\\d\\d-\\d\\d: ticket 17`));
    expect(shown).toContain(`frames per month: 2500000`);
    const asked = `${customer} committed to 2,500,000 frames a month`;
    const present = await ok("economics");
    expect(present).toContain(`${asked} for a year: a price of their own`);
    expect(present).toContain(`commitment: ${asked} and asks for it`);
    expect(await ok("economics", "--month", "2026-01")).not.toContain("committed");
    await ok("pools", "always-warm", "pusht-small", "off", "--note", "contract ended", "--by", "ada");
    expect(await readPoolSettings(database.db)).toMatchObject([{ always_warm_workers: null, set_by: "ada" }]);
    const events = await listPoolEvents(database.db, { model: null, kinds: null, since: null, limit: 4 });
    expect(events.map(({ kind, by }) => [kind, by])).toEqual([
      ["always_warm_off", "ada"],
      ["complaint", "grace"],
      ["commitment", "grace"],
      ["always_warm_on", "grace"],
    ]);
    expect(events.at(-1)?.detail).toMatchObject({ rent_usd_per_month: 5_680, trigger_met: false });
  });
});
