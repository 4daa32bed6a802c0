/** What `datasets watch` says off a terminal, and which rollouts its contact sheet shows. */
import { describe, expect, test } from "vitest";

import type { DatasetReply, RowReply } from "#cli/api/replies.ts";
import { createPlainLines } from "#cli/datasets/live-table.ts";
import { datasetText } from "#cli/datasets/show.ts";
import { type ReadSucceeded, someRows } from "#cli/datasets/some-rows.ts";
import { DATASET_ROWS_PAGE_MAX } from "#contract/limits.ts";

const rows = { total: 3, invalid: 0, pending: 2, running: 0, succeeded: 1, failed: 0, cancelled: 0, expired: 0 };
const dataset: DatasetReply = {
  id: "dataset_1",
  name: null,
  model: "m",
  state: "paused",
  pause_reason: "budget_reached",
  message: "raise the budget",
  created: 1,
  started: 1,
  finished: null,
  rows,
  cost: {
    price_mils_per_frame: 5,
    estimated_mils: 0,
    budget_mils: null,
    held_mils: 0,
    refunded_mils: 0,
    spent_mils: 0,
  },
  frames: { expected: 147, delivered: 49, rows_unmeasured: 2 },
  progress: { done: 1, of: 3, rows_per_min: null, eta_s: null },
};

test("off a terminal a message is said when it changes, not with every line", () => {
  const said: string[] = [];
  const table = createPlainLines((line) => said.push(line));
  table.show(dataset);
  table.show({ ...dataset, progress: { ...dataset.progress, done: 2 } });
  table.show({ ...dataset, message: null });
  table.show({ ...dataset, message: "raise it more" });
  table.show({ ...dataset, message: "raise the budget" });
  expect(said.filter((line) => !line.startsWith("paused (budget_reached) · "))).toEqual([
    "raise the budget",
    "raise it more",
    "raise the budget",
  ]);
  expect(said.filter((line) => line.startsWith("paused (budget_reached) · "))).toHaveLength(3);
});

test.each([
  [{ pending: 2, unmeasured: 2 }, "expected, 2 rows not measured yet"],
  [{ pending: 1, unmeasured: 2 }, "expected, 1 row not measured yet"],
  [{ pending: 0, unmeasured: 2 }, "expected\n"],
  [{ pending: 2, unmeasured: 0 }, "expected\n"],
])("rows that nobody has measured are told while they wait: %o", ({ pending, unmeasured }, text) => {
  const frames = { ...dataset.frames, rows_unmeasured: unmeasured };
  expect(datasetText({ ...dataset, frames, rows: { ...rows, pending } })).toContain(`of 147 ${text}`);
});

/** Of a dataset whose succeeded rows are these. */
const readOf =
  (succeeded: readonly number[]): ReadSucceeded =>
  async (after, limit) => {
    const rest = succeeded.filter((n) => n > after);
    return { data: rest.slice(0, limit).map((n) => ({ n }) as RowReply), has_more: rest.length > limit };
  };
const upTo = (count: number): number[] => Array.from({ length: count }, (_unused, index) => index + 1);

describe("a contact sheet shows up to eight succeeded rows from all over", () => {
  test.each([
    ["six of 27, close together", [2, 3, 4, 5, 6, 26], 27, [2, 3, 4, 5, 6, 26]],
    ["ten of 27", [1, 2, 3, 4, 5, 6, 7, 8, 9, 27], 27, [1, 2, 4, 5, 6, 7, 9, 27]],
    ["none", [], 27, []],
  ])("%s", async (_what, succeeded, total, shown) => {
    expect((await someRows(readOf(succeeded), total)).map(({ n }) => n)).toEqual(shown);
  });

  test("of more than a page: from the first to the last, in few calls", async () => {
    let calls = 0;
    const read = readOf(upTo(8_001));
    const shown = await someRows((after, limit) => {
      calls++;
      return read(after, limit);
    }, 8_001);
    expect(shown.map(({ n }) => n)).toEqual([1, 1144, 2287, 3430, 4572, 5715, 6858, 8001]);
    expect(calls).toBe(9);
  });

  test("of more than a page, all at the beginning of a large dataset", async () => {
    const shown = (await someRows(readOf(upTo(DATASET_ROWS_PAGE_MAX + 1)), 250_000)).map(({ n }) => n);
    expect(new Set(shown).size).toBe(8);
    expect(shown).toEqual(shown.toSorted((a, b) => a - b));
  });
});
