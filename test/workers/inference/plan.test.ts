import * as fc from "fast-check";
import { describe, expect, test } from "vitest";

import { createRowBudget, planForward, type Stage } from "#workers/inference/engine/plan.ts";

interface TestSample {
  readonly name: string;
  readonly stage: Stage;
  readonly rows: number;
  readonly alone: boolean;
}
const sample = (name: string, stage: Stage, rows = 1, alone = false): TestSample => ({ name, stage, rows, alone });

const names = (live: readonly TestSample[], rowsMax = 8) => {
  const plan = planForward(live, rowsMax);
  return plan && `${plan.stage} ${plan.samples.map(({ name }) => name).join("")}`;
};

test.each<[string, readonly TestSample[], string | null]>([
  ["nothing to do", [], null],
  ["denoises everyone together", [sample("a", "denoise"), sample("b", "denoise")], "denoise ab"],
  [
    "brings a newcomer to its denoising before the others' next step",
    [sample("a", "denoise"), sample("b", "encode")],
    "encode b",
  ],
  [
    "decodes before it denoises, so that the next step is shared by all",
    [sample("a", "denoise"), sample("b", "decode")],
    "decode b",
  ],
  ["encodes before it decodes", [sample("a", "decode"), sample("b", "encode")], "encode b"],
  [
    "lets an alone sample wait until it is the oldest",
    [sample("a", "denoise"), sample("P", "encode", 1, true), sample("b", "denoise")],
    "denoise ab",
  ],
  [
    "gives the oldest, if alone, a forward of its own",
    [sample("P", "denoise", 1, true), sample("Q", "denoise", 1, true), sample("b", "encode")],
    "denoise P",
  ],
])("%s", (_, live, expected) => {
  expect(names(live)).toBe(expected);
});

test("the oldest are served first when not all fit", () => {
  const live = ["a", "b", "c", "d"].map((name) => sample(name, "denoise", 2));
  expect(names(live, 5)).toBe("denoise ab");
});

test("a guided sample runs even where only one row fits", () => {
  expect(names([sample("a", "denoise", 2), sample("b", "denoise")], 1)).toBe("denoise a");
});

test("a budget that refused still takes what fits", () => {
  const budget = createRowBudget(3);
  expect([2, 2, 1, 1].map((rows) => budget.tryAdd(rows))).toEqual([true, false, true, false]);
});

describe("for any live samples", () => {
  const liveSamples = fc.array(
    fc.record({
      name: fc.string(),
      stage: fc.constantFrom<Stage>("encode", "decode", "denoise"),
      rows: fc.constantFrom(1, 2),
      alone: fc.boolean(),
    }),
    { maxLength: 20 },
  );
  const rowsMax = fc.integer({ min: 1, max: 16 });

  test("a forward is one stage, within the budget unless one sample alone exceeds it", () => {
    fc.assert(
      fc.property(liveSamples, rowsMax, (live, max) => {
        const plan = planForward(live, max);
        expect(plan === null).toBe(live.length === 0);
        if (plan === null) return;
        expect(new Set(plan.samples.map(({ stage }) => stage))).toEqual(new Set([plan.stage]));
        const rows = plan.samples.reduce((sum, one) => sum + one.rows, 0);
        expect(rows <= max || plan.samples.length === 1).toBe(true);
      }),
    );
  });

  test("an alone sample shares a forward with nobody", () => {
    fc.assert(
      fc.property(liveSamples, rowsMax, (live, max) => {
        const { samples = [] } = planForward(live, max) ?? {};
        expect(samples.length === 1 || samples.every(({ alone }) => !alone)).toBe(true);
      }),
    );
  });

  test("everyone is served within a bounded number of forwards", () => {
    // Each sample needs an encode, some steps and a decode; arrival order, budget and alone flags are arbitrary.
    const work = fc.array(
      fc.record({ steps: fc.integer({ min: 1, max: 5 }), rows: fc.constantFrom(1, 2), alone: fc.boolean() }),
      {
        minLength: 1,
        maxLength: 12,
      },
    );
    fc.assert(
      fc.property(work, rowsMax, (specs, max) => {
        let live = specs.map(({ steps, rows, alone }) => ({
          todo: ["encode", ...Array.from({ length: steps }, () => "denoise"), "decode"] as Stage[],
          rows,
          alone,
        }));
        const forwardsMax = specs.reduce((sum, { steps }) => sum + steps + 2, 0);
        let forwards = 0;
        while (live.length > 0 && forwards <= forwardsMax) {
          const plan = planForward(
            live.map((one) => ({ one, stage: one.todo[0] ?? "decode", rows: one.rows, alone: one.alone })),
            max,
          );
          for (const { one } of plan?.samples ?? []) one.todo.shift();
          live = live.filter(({ todo }) => todo.length > 0);
          forwards += 1;
        }
        expect(live).toEqual([]);
      }),
    );
  });
});
