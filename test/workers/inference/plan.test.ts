import * as fc from "fast-check";
import { describe, expect, test } from "vitest";

import type { Lane } from "#contract/rollout.ts";
import {
  BULK_EVERY,
  createRowBudget,
  FIRST_PLAN,
  planForward,
  type PlanState,
  type RowLimits,
  type Stage,
} from "#workers/inference/engine/plan.ts";

interface TestSample {
  readonly name: string;
  readonly lane: Lane;
  readonly stage: Stage;
  readonly graphs: string;
  readonly rows: number;
  readonly alone: boolean;
}
const sample = (name: string, stage: Stage, changes: Partial<TestSample> = {}): TestSample => ({
  name,
  lane: "realtime",
  stage,
  graphs: "",
  rows: 1,
  alone: false,
  ...changes,
});
const bulk = (name: string, stage: Stage, changes: Partial<TestSample> = {}) =>
  sample(name, stage, { lane: "bulk", ...changes });
const ALONE = { alone: true };
/** Rows are free: bulk may take all that realtime leaves. */
const upTo = (rowsMax: number): RowLimits => ({ rowsMax, rowsWorth: rowsMax, fillTo: {} });
const BULKS_TURN: PlanState = { bulkPassedOver: BULK_EVERY };

/** "stage names", and " – names" of those displaced. */
function told(ready: readonly TestSample[], limits: number | RowLimits = 8, state = FIRST_PLAN): string | null {
  const { forward } = planForward(ready, typeof limits === "number" ? upTo(limits) : limits, state);
  const names = (samples: readonly TestSample[]) => samples.map(({ name }) => name).join("");
  if (!forward) return null;
  const displaced = forward.displaced.length > 0 ? ` – ${names(forward.displaced)}` : "";
  return `${forward.stage} ${names(forward.samples)}${displaced}`;
}

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
    "runs heads before bodies, so that a body's forward holds all that need one",
    [sample("a", "body"), sample("b", "head"), sample("c", "body")],
    "head b",
  ],
  [
    "keeps apart what takes other graphs, the oldest first",
    [
      sample("a", "denoise", { graphs: "unfused" }),
      sample("b", "denoise"),
      sample("c", "denoise", { graphs: "unfused" }),
    ],
    "denoise ac",
  ],
  [
    "lets an alone sample wait until it is the oldest",
    [sample("a", "denoise"), sample("P", "encode", ALONE), sample("b", "denoise")],
    "denoise ab",
  ],
  [
    "gives the oldest, if alone, a forward of its own",
    [sample("P", "denoise", ALONE), sample("Q", "denoise", ALONE), sample("b", "encode")],
    "denoise P",
  ],
])("%s", (_, ready, expected) => {
  expect(told(ready)).toBe(expected);
});

describe("with two lanes", () => {
  test.each<[string, readonly TestSample[], number, string]>([
    ["realtime decides the stage, also a longer one", [bulk("a", "encode"), sample("R", "denoise")], 8, "denoise R"],
    [
      "bulk takes the rows that are left, the oldest first",
      [bulk("a", "denoise"), bulk("b", "denoise"), sample("R", "denoise"), sample("S", "denoise")],
      3,
      "denoise RSa – b",
    ],
    [
      "bulk makes way where there is no row left",
      [bulk("a", "denoise"), sample("R", "denoise", { rows: 2 })],
      2,
      "denoise R – a",
    ],
    ["what stands elsewhere is not displaced, it waits", [bulk("a", "decode"), sample("R", "denoise")], 1, "denoise R"],
    ["bulk leads itself where there is no realtime", [bulk("a", "denoise"), bulk("b", "decode")], 8, "decode b"],
    [
      "an alone realtime sample that is its lane's oldest does not share with bulk",
      [bulk("a", "denoise"), sample("P", "denoise", ALONE)],
      8,
      "denoise P",
    ],
    [
      "an alone bulk sample does not hold up realtime",
      [bulk("P", "denoise", ALONE), sample("R", "denoise")],
      8,
      "denoise R",
    ],
  ])("%s", (_, ready, rowsMax, expected) => {
    expect(told(ready, rowsMax)).toBe(expected);
  });

  test("where more rows bring no more, the oldest goes first, and what is cheap is still shared", () => {
    const dear: RowLimits = { rowsMax: 8, rowsWorth: 1, fillTo: {} };
    const two = (stage: Stage) => [sample("a", stage), sample("b", stage), bulk("c", stage)];
    expect(told(two("denoise"), dear)).toBe("denoise a – c");
    expect(told(two("body"), { ...dear, rowsWorth: 2 })).toBe("body ab – c");
    for (const stage of ["encode", "decode", "head"] as const) expect(told(two(stage), dear)).toBe(`${stage} abc`);
    expect(told([bulk("c", "denoise"), bulk("d", "denoise")], dear)).toBe("denoise c");
    expect(told([sample("g", "denoise", { rows: 2 }), sample("b", "denoise")], dear)).toBe("denoise g");
    expect(told(two("denoise"), dear, BULKS_TURN)).toBe("denoise c");
  });

  test("bulk takes no rows that would cost realtime much, and leads none the fewer forwards for it", () => {
    const ready = [bulk("a", "denoise"), bulk("b", "denoise"), sample("R", "denoise")];
    const dear: RowLimits = { rowsMax: 3, rowsWorth: 3, fillTo: { denoise: [1, 1, 2, 3] } };
    expect(told(ready, dear)).toBe("denoise R – ab");
    expect(told([...ready, sample("S", "denoise")], { ...dear, fillTo: { denoise: [1, 2, 3, 3] } })).toBe(
      "denoise RSa – b",
    );
    expect(told(ready.slice(0, 2), dear)).toBe("denoise ab");
    expect(told(ready, dear, BULKS_TURN)).toBe("denoise aR"); // its oldest has its turn, no more
    expect(told(ready, 3, BULKS_TURN)).toBe("denoise aRb");
    expect(told([...ready.slice(0, 2), sample("R", "encode")], dear, BULKS_TURN)).toBe("denoise a");
    expect(told([...ready.slice(0, 2), sample("R", "encode")], 3, BULKS_TURN)).toBe("denoise ab");
  });

  test("what costs much is told of each stage by itself", () => {
    const dearDecoding: RowLimits = { rowsMax: 2, rowsWorth: 2, fillTo: { denoise: [2, 2, 2], decode: [1, 1, 2] } };
    expect(told([bulk("a", "decode"), sample("R", "decode")], dearDecoding)).toBe("decode R – a");
    // Nothing is said of encoding.
    for (const stage of ["denoise", "head", "body", "encode"] as const) {
      expect(told([bulk("a", stage), sample("R", stage)], dearDecoding)).toBe(`${stage} Ra`);
    }
  });

  test.each<[string, readonly TestSample[], string]>([
    [
      "the oldest bulk sample decides, and realtime takes the rows that are left before other bulk samples",
      [bulk("a", "decode"), bulk("b", "decode"), sample("R", "decode"), sample("S", "denoise")],
      "decode aR",
    ],
    ["a stage that only bulk stands at is run", [bulk("a", "denoise"), sample("R", "encode")], "denoise a"],
    ["an alone bulk sample has it for itself", [bulk("P", "decode", ALONE), sample("R", "decode")], "decode P"],
  ])("at bulk's turn: %s", (_, ready, expected) => {
    expect(told(ready, 2, BULKS_TURN)).toBe(expected);
  });

  test("the turn comes after so many forwards without the oldest bulk sample, whoever of bulk shared them", () => {
    const ready = [bulk("old", "denoise", { graphs: "unfused" }), bulk("young", "denoise"), sample("R", "denoise")];
    const tellings: (string | null)[] = [];
    let state = FIRST_PLAN;
    for (let i = 0; i < 2 * (BULK_EVERY + 1); i++) {
      tellings.push(told(ready, 8, state));
      ({ state } = planForward(ready, upTo(8), state));
    }
    const round = [...Array.from({ length: BULK_EVERY }, () => "denoise Ryoung"), "denoise old"];
    expect(tellings).toEqual([...round, ...round]);
  });
});

test("the oldest are served first when not all fit", () => {
  const ready = ["a", "b", "c", "d"].map((name) => sample(name, "denoise", { rows: 2 }));
  expect(told(ready, 5)).toBe("denoise ab");
});

test("a guided sample runs even where only one row fits", () => {
  expect(told([sample("a", "denoise", { rows: 2 }), sample("b", "denoise")], 1)).toBe("denoise a");
});

test("a budget that refused still takes what fits", () => {
  const budget = createRowBudget(3);
  expect([2, 2, 1, 1].map((rows) => budget.tryAdd(rows))).toEqual([true, false, true, false]);
});

const lane = fc.constantFrom<Lane>("realtime", "bulk");
const rowsMax = fc.integer({ min: 1, max: 16 });
const planState = fc.record({ bulkPassedOver: fc.integer({ min: 0, max: BULK_EVERY }) });

const rowsOf = (samples: readonly TestSample[]): number => samples.reduce((sum, { rows }) => sum + rows, 0);

describe("for any ready samples", () => {
  const readySamples = fc.array(
    fc.record({
      name: fc.string(),
      lane,
      stage: fc.constantFrom<Stage>("encode", "decode", "head", "body", "denoise"),
      graphs: fc.constantFrom("", "unfused"),
      rows: fc.constantFrom(1, 2),
      alone: fc.boolean(),
    }),
    { maxLength: 20 },
  );
  test("a forward is one stage and one set of graphs, within the budget unless one sample alone exceeds it", () => {
    fc.assert(
      fc.property(readySamples, rowsMax, planState, (ready, max, state) => {
        const { forward } = planForward(ready, upTo(max), state);
        expect(forward === null).toBe(ready.length === 0);
        if (forward === null) return;
        expect(new Set(forward.samples.map(({ stage }) => stage))).toEqual(new Set([forward.stage]));
        expect(new Set(forward.samples.map(({ graphs }) => graphs)).size).toBe(1);
        expect(new Set(forward.samples).size).toBe(forward.samples.length);
        expect(rowsOf(forward.samples) <= max || forward.samples.length === 1).toBe(true);
      }),
    );
  });

  test("no row stays free while a sample that could take it waits", () => {
    fc.assert(
      fc.property(readySamples, rowsMax, planState, (ready, max, state) => {
        const { samples = [] } = planForward(ready, upTo(max), state).forward ?? {};
        const [first] = samples;
        if (!first || first.alone) return;
        const free = max - rowsOf(samples);
        const waiting = ready.filter(
          (one) => !samples.includes(one) && !one.alone && one.stage === first.stage && one.graphs === first.graphs,
        );
        expect(waiting.filter(({ rows }) => rows <= free)).toEqual([]);
      }),
    );
  });

  test("an alone sample shares a forward with nobody, and has one only as the oldest of its lane", () => {
    fc.assert(
      fc.property(readySamples, rowsMax, planState, (ready, max, state) => {
        const { samples = [] } = planForward(ready, upTo(max), state).forward ?? {};
        const alone = samples.find((one) => one.alone);
        if (!alone) return;
        expect(samples).toHaveLength(1);
        expect(ready.find((one) => one.lane === alone.lane)).toBe(alone);
      }),
    );
  });

  test("a forward without a ready realtime sample is bulk's turn, and the next one is not", () => {
    fc.assert(
      fc.property(readySamples, rowsMax, planState, (ready, max, state) => {
        if (!ready.some((one) => one.lane === "realtime")) return;
        const { forward, state: after } = planForward(ready, upTo(max), state);
        if (forward?.samples.some((one) => one.lane === "realtime")) return;
        expect(state.bulkPassedOver).toBe(BULK_EVERY);
        const next = planForward(ready, upTo(max), after);
        expect(next.forward?.samples.some((one) => one.lane === "realtime")).toBe(true);
      }),
    );
  });

  test("realtime samples whose rows fit are in this forward or the next", () => {
    const together = readySamples.map((samples) =>
      samples.map((one) =>
        one.lane === "bulk" ? one : { ...one, stage: "denoise" as const, graphs: "", alone: false },
      ),
    );
    fc.assert(
      fc.property(together, rowsMax, planState, (ready, max, state) => {
        const realtime = ready.filter((one) => one.lane === "realtime");
        if (rowsOf(realtime) > max) return;
        const first = planForward(ready, upTo(max), state);
        const second = planForward(ready, upTo(max), first.state);
        const taking = [...(first.forward?.samples ?? []), ...(second.forward?.samples ?? [])];
        expect(realtime.filter((one) => !taking.includes(one))).toEqual([]);
      }),
    );
  });

  test("the same state and samples give the same plan", () => {
    fc.assert(
      fc.property(readySamples, rowsMax, planState, (ready, max, state) => {
        const copy = structuredClone({ ready, state });
        const plan = planForward(ready, upTo(max), state);
        expect(planForward(copy.ready, upTo(max), copy.state)).toEqual(plan);
        expect({ ready, state }).toEqual(copy); // and nothing was written to
      }),
    );
  });
});

describe("over whole lives", () => {
  /** Encode, then steps of head and body (a skipped body is left out), then decode; lanes and graphs are arbitrary. */
  const lives = fc.array(
    fc.record({
      steps: fc.array(fc.constantFrom<readonly Stage[]>(["head"], ["head", "body"]), { minLength: 1, maxLength: 5 }),
      lane,
      graphs: fc.constantFrom("", "unfused"),
      rows: fc.constantFrom(1, 2),
      alone: fc.boolean(),
      /** Comes when so many forwards have run. */
      arrives: fc.integer({ min: 0, max: 30 }),
    }),
    { minLength: 1, maxLength: 12 },
  );
  type Life = Omit<TestSample, "name" | "stage"> & { readonly steps: readonly (readonly Stage[])[]; arrives: number };
  const todoOf = ({ steps }: Life): Stage[] => ["encode", ...steps.flat(), "decode"];

  interface Run {
    readonly lane: Lane;
    /** Indices of forwards: those it took part in, and from which on it was there. */
    readonly took: number[];
    readonly arrives: number;
  }

  function simulate(specs: readonly Life[], max: number): { runs: Run[]; forwards: readonly (readonly Run[])[] } {
    const sorted = specs.toSorted((a, b) => a.arrives - b.arrives);
    const live = sorted.map((spec) => {
      const run: Run = { lane: spec.lane, took: [], arrives: spec.arrives };
      return { spec, todo: todoOf(spec), run };
    });
    const forwards: Run[][] = [];
    let state = FIRST_PLAN;
    const workMax = live.reduce((sum, { todo }) => sum + todo.length, 0) + 30;
    for (let tick = 0; live.some(({ todo }) => todo.length > 0); tick++) {
      if (tick > workMax) throw new Error("someone is never served");
      const ready = live
        .filter(({ spec, todo }) => spec.arrives <= tick && todo.length > 0)
        .map((one) => ({ ...one.spec, stage: one.todo[0] ?? "decode", one }));
      const plan = planForward(ready, upTo(max), state);
      ({ state } = plan);
      const taking = (plan.forward?.samples ?? []).map(({ one }) => one);
      for (const { todo, run } of taking) {
        todo.shift();
        run.took.push(tick);
      }
      forwards.push(taking.map(({ run }) => run));
    }
    return { runs: live.map(({ run }) => run), forwards };
  }

  test("everyone is served: never more forwards than there is work", () => {
    fc.assert(
      fc.property(lives, rowsMax, (specs, max) => {
        const { runs } = simulate(specs, max); // throws when it takes longer
        expect(runs.flatMap(({ took }) => took)).toHaveLength(specs.flatMap(todoOf).length);
      }),
    );
  });

  test("the oldest bulk sample takes part in every ninth forward at least", () => {
    fc.assert(
      fc.property(lives, rowsMax, (specs, max) => {
        const { runs, forwards } = simulate(specs, max);
        const bulkRuns = runs.filter((run) => run.lane === "bulk");
        let passedOver = 0;
        for (const [tick, taking] of forwards.entries()) {
          const oldest = bulkRuns.find(({ arrives, took }) => arrives <= tick && (took.at(-1) ?? 0) >= tick);
          const isLedByRealtime = taking.some((run) => run.lane === "realtime");
          if (!oldest || taking.includes(oldest)) passedOver = 0;
          else if (isLedByRealtime) passedOver += 1;
          expect(passedOver).toBeLessThanOrEqual(BULK_EVERY);
        }
      }),
    );
  });

  test("between two forwards without a ready realtime sample there are eight that realtime led", () => {
    fc.assert(
      fc.property(lives, rowsMax, (specs, max) => {
        const { runs, forwards } = simulate(specs, max);
        const realtime = runs.filter((run) => run.lane === "realtime");
        let ledSince = BULK_EVERY;
        const ledBefore: number[] = [];
        for (const [tick, taking] of forwards.entries()) {
          const isReady = realtime.some(({ arrives, took }) => arrives <= tick && (took.at(-1) ?? 0) >= tick);
          if (!isReady) continue;
          if (taking.some((run) => run.lane === "realtime") && taking[0]?.lane === "realtime") ledSince += 1;
          else if (taking.every((run) => run.lane === "bulk")) {
            ledBefore.push(ledSince);
            ledSince = 0;
          }
        }
        expect(ledBefore.filter((forwards) => forwards < BULK_EVERY)).toEqual([]);
      }),
    );
  });
});
