/** What bench/mpc sets beside what. */
import { expect, test } from "vitest";

import { linesOf, rowsOf, type Turn, type WayName } from "../../bench/mpc/report.ts";

const roundOf = (walls: Readonly<Record<WayName, number>>): Turn[] =>
  Object.entries(walls).map(([way, wall_ms]) => ({ way: way as WayName, wall_ms, work: null }));

const rounds = [1, 3].map((slow) =>
  roundOf({
    "8 in one request": 400 * slow,
    "8 requests at once": 500 * slow,
    "8 requests in a row": 800 * slow,
    "1 request": 200 * slow,
  }),
);

test("frames a second of eight candidates count eight times those of one, and ratios are each round's own", () => {
  const [inOne, , inARow, one] = rowsOf({ rounds, actions: 12 });
  expect(inOne).toEqual({
    way: "8 in one request",
    wall_ms: 800,
    frames_per_s: 120,
    beside_in_a_row: 2,
    beside_one: 4,
    work: null,
  });
  expect([inARow?.beside_in_a_row, inARow?.beside_one, one?.frames_per_s]).toEqual([1, 2, 30]);
});

test("counts are shown where the engine's counters are known", () => {
  const planned = { model: "m", where: "here", actions: 12, num_steps: 2, guidance: 0 };
  expect(linesOf({ ...planned, rounds }).join("\n")).not.toContain("frames encoded");
  const work = {
    body_rows: 96,
    bodies: 12,
    skipped: 0,
    halved: 96,
    timestep_hits: 96,
    text_hits: 1,
    text_lookups: 1,
    frames_encoded: 1,
  };
  const counted = rounds.map((round) => round.map((turn) => ({ ...turn, work })));
  expect(linesOf({ ...planned, rounds: counted }).join("\n")).toContain(
    "| 8 in one request | 800 ms | 120.0 | 2.00 | 4.00 | 1 | 1 | 12 | 96 |",
  );
});

test("a round without one of the ways is no comparison", () => {
  expect(() => rowsOf({ rounds: [rounds[0]?.slice(1) ?? []], actions: 12 })).toThrow("8 in one request");
});
