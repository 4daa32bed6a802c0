/** How much is in flight, what the budget allows, and how fast rows end: functions of numbers alone. */
import { describe, expect, test } from "vitest";

import { mils } from "#contract/mils.ts";
import { newPace, nextPace, paceOf, rowsPerSecond } from "#datasets/pace.ts";
import {
  IN_FLIGHT_MAX,
  IN_FLIGHT_MIN,
  payable,
  SLICE_ROWS_MAX,
  sliceSize,
  withinBudget,
} from "#datasets/slice-policy.ts";

describe("sliceSize", () => {
  test.for([
    [{ rows_pending: 1_000, rows_running: 0, rows_per_s: 0 }, IN_FLIGHT_MIN],
    [{ rows_pending: 1_000, rows_running: 30, rows_per_s: 0 }, 2],
    [{ rows_pending: 1_000, rows_running: 32, rows_per_s: 0 }, 0],
    [{ rows_pending: 1_000, rows_running: 40, rows_per_s: 0 }, 0],
    [{ rows_pending: 3, rows_running: 0, rows_per_s: 0 }, 3],
    [{ rows_pending: 1_000, rows_running: 60, rows_per_s: 5 }, 40],
    [{ rows_pending: 1_000, rows_running: 0, rows_per_s: 1_000 }, SLICE_ROWS_MAX],
    [{ rows_pending: 1_000, rows_running: IN_FLIGHT_MAX - 1, rows_per_s: 1_000 }, 1],
    [{ rows_pending: 1_000, rows_running: IN_FLIGHT_MAX, rows_per_s: 1e9 }, 0],
  ] as const)("%o: %i", ([dataset, rows]) => {
    expect(sliceSize(dataset)).toBe(rows);
  });
});

test("the budget counts what was spent and what is held; what is held may come back", () => {
  const spending = { budget_mils: mils(100), charged_mils: mils(60), refunded_mils: mils(20), held_mils: mils(30) };
  expect(withinBudget(spending, mils(30))).toBe("yes");
  expect(withinBudget(spending, mils(31))).toBe("wait");
  expect(withinBudget(spending, mils(60))).toBe("wait");
  expect(withinBudget(spending, mils(61))).toBe("reached");
  expect(withinBudget({ ...spending, held_mils: mils(0) }, mils(60))).toBe("yes");
  expect(withinBudget({ ...spending, budget_mils: null }, mils(1_000_000))).toBe("yes");
  expect(withinBudget({ ...spending, budget_mils: mils(0) }, mils(0))).toBe("reached");
});

test("as many rows as the balance pays for, in their order, and one to be told no", () => {
  expect(payable([10, 10, 10], mils(149), 5)).toBe(2);
  expect(payable([10, 10, 10], mils(150), 5)).toBe(3);
  expect(payable([10, 1], mils(49), 5)).toBe(1);
  expect(payable([10, 10], mils(0), 0)).toBe(2);
});

const after = (seconds: number, perSecond: number, from = newPace(0)) => {
  let pace = from;
  const begin = from.pace_at?.getTime() ?? 0;
  for (let s = 1; s <= seconds; s++) pace = nextPace(pace, perSecond, begin + s * 1_000);
  return pace;
};

describe("pace", () => {
  test("is right from the first seconds on, and as right after hours", () => {
    for (const seconds of [5, 60, 10_000]) {
      expect(rowsPerSecond(after(seconds, 3), seconds * 1_000)).toBeCloseTo(3, 1);
    }
  });

  test("falls while nothing ends, and follows a change within minutes", () => {
    const pace = after(600, 10);
    expect(rowsPerSecond(pace, 660_000)).toBeCloseTo(5, 1);
    expect(rowsPerSecond(after(300, 2, pace), 900_000)).toBeLessThan(2.5);
  });

  test("is not guessed from a moment, nor from clocks that disagree", () => {
    expect(rowsPerSecond(nextPace(newPace(0), 50, 100), 100)).toBe(0);
    const ahead = nextPace(newPace(10_000), 5, 4_000);
    expect(ahead.pace_at).toEqual(new Date(10_000));
    expect(rowsPerSecond(ahead, 20_000)).toBeGreaterThan(0);
  });

  test("gives a rate and an estimate of what is left, or neither", () => {
    const rows = { rows_pending: 50, rows_running: 10 };
    const { rows_per_min, eta_s } = paceOf({ ...after(60, 2), ...rows, state: "running" }, 60_000);
    expect(rows_per_min).toBeCloseTo(120, -1);
    expect(eta_s).toBe(30);
    expect(paceOf({ ...after(60, 2), ...rows, state: "paused" }, 60_000)).toEqual({ rows_per_min: null, eta_s: null });
    expect(paceOf({ ...newPace(0), ...rows, state: "running" }, 60_000)).toEqual({ rows_per_min: null, eta_s: null });
    expect(paceOf({ ...after(1, 1), ...rows, state: "running" }, 3_600_000)).toEqual({
      rows_per_min: null,
      eta_s: null,
    });
  });
});
