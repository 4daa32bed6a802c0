import * as fc from "fast-check";
import { describe, expect, test } from "vitest";

import { estimateColdStart } from "#scheduler/scaling/cold-start.ts";
import { chooseDrains } from "#scheduler/scaling/drain.ts";
import { observe, type Observation, type PoolHistory } from "#scheduler/scaling/history.ts";
import { decide, type Decision, SCALING_DEFAULTS, type ScalingOptions } from "#scheduler/scaling/policy.ts";
import { simulate } from "#scheduler/simulate/simulate.ts";
import { traceOf } from "#scheduler/simulate/trace.ts";

const OPTIONS: ScalingOptions = { ...SCALING_DEFAULTS, maximum: 20, samples_per_worker: 4, cold_start_s: 70 };
const ROLLOUT_S = 4;
const NOW = 10_000_000;
const NONE = { rollouts: 0, samples: 0, work_s: 0 };
const IDLE: Observation = { ready: 0, starting_since_ms: [], waiting: NONE, active: NONE, arrived_work_s: 0 };

const rollouts = (count: number): Observation["waiting"] => ({
  rollouts: count,
  samples: count,
  work_s: count * ROLLOUT_S,
});

interface Look {
  /** Seconds before NOW. */
  readonly ago: number;
  readonly seen: Partial<Observation>;
}

function historyOf(looks: readonly Look[], options = OPTIONS): PoolHistory {
  let history: PoolHistory | null = null;
  for (const { ago, seen } of looks) history = observe(history, { ...IDLE, ...seen }, NOW - ago * 1000, options);
  if (history === null) throw new Error("a history needs a look");
  return history;
}

/** An empty pool long ago, so that what is seen now is all there is. */
const now = (seen: Partial<Observation>, overrides: Partial<ScalingOptions> = {}): Decision => {
  const options = { ...OPTIONS, ...overrides };
  const looks = [
    { ago: 1_000, seen: {} },
    { ago: 0, seen },
  ];
  return decide(historyOf(looks, options), NOW, options);
};

/** One worker and 30 rollouts that wait, after five minutes of arrivals: seconds of work by seconds before now. */
function afterArrivals(workOf: (ago: number) => number): Decision {
  let total = 0;
  const looks = Array.from({ length: 301 }, (_, second) => {
    total += workOf(300 - second);
    return { ago: 300 - second, seen: { ready: 1, waiting: rollouts(30), arrived_work_s: total } };
  });
  return decide(historyOf(looks), NOW, OPTIONS);
}

test("a clock that was set back keeps nobody for longer than the window", () => {
  const options = { ...OPTIONS, scaledown_s: 60 };
  const looks = [
    { ago: 4_000, seen: { ready: 5, active: packed(5) } },
    { ago: 3_999, seen: { ready: 5 } },
    // From here on an hour earlier, and nothing to do.
    { ago: 7_600, seen: { ready: 5 } },
    { ago: 7_599, seen: { ready: 5 } },
    { ago: 7_539, seen: { ready: 5 } },
  ];
  expect(decide(historyOf(looks, options), NOW - 7_539_000, options)).toMatchObject({ desired: 0 });
});

/** So many workers full of samples. */
const packed = (workers: number): Observation["active"] => ({ rollouts: workers, samples: workers * 4, work_s: 8 });

const last = (all: readonly Look[]): Partial<Observation> => all.at(-1)?.seen ?? {};

describe("the size of a pool", () => {
  test.each<[string, Partial<Observation>, Partial<ScalingOptions>, number, string]>([
    ["no work and no worker: it stays empty", {}, {}, 0, "no_work"],
    ["a rollout and no worker: one is started, whatever it costs", { waiting: rollouts(1) }, {}, 1, "from_zero"],
    ["a batch of 70 s of work and no worker: one", { waiting: rollouts(18) }, {}, 1, "from_zero"],
    ["a batch of ten cold starts of work and no worker: ten", { waiting: rollouts(175) }, {}, 10, "from_zero"],
    [
      "one on its way for the only rollout: no second",
      { waiting: rollouts(1), starting_since_ms: [NOW] },
      {},
      1,
      "wait",
    ],
    ["a worker, and a wall of less than a cold start: it waits", { ready: 1, waiting: rollouts(17) }, {}, 1, "wait"],
    [
      "a wall that a start outlasts, but does not pay for: it waits",
      { ready: 1, waiting: rollouts(35) },
      {},
      1,
      "wait",
    ],
    ["a wall of three cold starts: one more", { ready: 1, waiting: rollouts(53) }, {}, 2, "scale_out"],
    [
      "the same, and the one more has begun: no further",
      { ready: 1, starting_since_ms: [NOW], waiting: rollouts(53) },
      {},
      2,
      "wait",
    ],
    [
      "a start that takes long: it is expected any moment, and nobody else is started",
      { ready: 0, starting_since_ms: [NOW - 600_000], waiting: rollouts(3) },
      {},
      1,
      "wait",
    ],
    [
      "few long rollouts: no more workers than rollouts",
      { ready: 1, waiting: { rollouts: 2, samples: 2, work_s: 10_000 } },
      {},
      3,
      "scale_out",
    ],
    ["more than the maximum", { waiting: rollouts(2_000) }, {}, 20, "maximum"],
    ["less than the minimum", { waiting: rollouts(1) }, { minimum: 3 }, 3, "minimum"],
    ["always warm", {}, { always_warm: { workers: 2 } }, 2, "always_warm"],
    [
      "always warm beyond the maximum: the maximum holds",
      {},
      { maximum: 1, always_warm: { workers: 2 } },
      1,
      "always_warm",
    ],
    [
      "jobs of a worker that is gone, and no other: one is started for them",
      { active: rollouts(3) },
      {},
      1,
      "orphaned_work",
    ],
    ["the same while one starts: it stays", { starting_since_ms: [NOW], active: rollouts(3) }, {}, 1, "busy"],
    ["all work", { ready: 2, active: { rollouts: 2, samples: 8, work_s: 8 } }, {}, 2, "busy"],
    [
      "eight samples that two workers hold, on three: the third is not needed",
      { ready: 3, active: { rollouts: 8, samples: 8, work_s: 32 } },
      {},
      2,
      "scale_in",
    ],
  ])("%s", (_name, seen, overrides, desired, kind) => {
    const decision = now(seen, overrides);
    expect({ desired: decision.desired, kind: decision.reason.kind }).toEqual({ desired, kind });
  });

  test("says the numbers that a start was decided by", () => {
    expect(now({ ready: 1, waiting: rollouts(53) }).reason).toEqual({
      kind: "scale_out",
      start: 1,
      waiting_rollouts: 53,
      work_s: 212,
      workers: 1,
      sustained_workers: 0,
      wall_s: 212,
      break_even_s: 140,
      starting_s: 0,
    });
  });

  test("work that keeps arriving counts before it is a backlog, a single batch does not", () => {
    expect(afterArrivals(() => 3).reason).toMatchObject({ kind: "scale_out", sustained_workers: 3, wall_s: null });
    expect(afterArrivals((ago) => (ago === 20 ? 900 : 0)).reason).toMatchObject({ kind: "wait", sustained_workers: 0 });
  });
});

describe("the scaledown window", () => {
  const busy = { ready: 1, active: rollouts(1), arrived_work_s: ROLLOUT_S };
  const idle = { ready: 1, arrived_work_s: ROLLOUT_S };

  test.each([
    [0, 1, "scaledown_window"],
    [59, 1, "scaledown_window"],
    [60, 0, "scale_in"],
  ])("%i s after a look found it idle, %i worker stays", (ago, desired, kind) => {
    const looks = [
      { ago: 500, seen: {} },
      { ago: ago + 5, seen: busy },
      { ago, seen: idle },
      { ago: 0, seen: idle },
    ];
    expect(decide(historyOf(looks), NOW, OPTIONS)).toMatchObject({ desired, reason: { kind } });
  });

  test("a rollout that came and went between two looks began it anew", () => {
    const looks = [
      { ago: 500, seen: idle },
      { ago: 30, seen: { ...idle, arrived_work_s: 2 * ROLLOUT_S } },
      { ago: 0, seen: { ...idle, arrived_work_s: 2 * ROLLOUT_S } },
    ];
    expect(decide(historyOf(looks), NOW, OPTIONS)).toMatchObject({
      desired: 1,
      reason: { kind: "scaledown_window", unneeded_s: 0 },
    });
  });

  test("a pool shrinks to the most that were needed at once, level by level", () => {
    const looks = [
      { ago: 100, seen: { ready: 5, active: packed(5) } },
      { ago: 70, seen: { ready: 5, active: packed(3) } },
      { ago: 40, seen: { ready: 5, active: packed(1) } },
      { ago: 0, seen: { ready: 5, active: packed(1) } },
    ];
    expect(decide(historyOf(looks), NOW, OPTIONS)).toMatchObject({ desired: 3, reason: { kind: "scale_in", peak: 3 } });
  });

  test("a new leader keeps what runs for one window", () => {
    const first = { ago: 59, seen: { ready: 4 } };
    expect(decide(historyOf([first]), NOW, OPTIONS).desired).toBe(4);
    const later = { ago: 1, seen: { ready: 4 } };
    expect(decide(historyOf([{ ...first, ago: 62 }, { ...later, ago: 61 }, later]), NOW, OPTIONS).desired).toBe(0);
  });
});

describe("whatever was seen", () => {
  const work = fc
    .record({ rollouts: fc.nat(200), k: fc.integer({ min: 1, max: 8 }), each: fc.integer({ min: 1, max: 60 }) })
    .map(({ rollouts, k, each }) => ({ rollouts, samples: rollouts * k, work_s: rollouts * k * each }));
  const observation = fc.record({
    ready: fc.nat(25),
    starting_since_ms: fc.array(fc.integer({ min: NOW - 100_000, max: NOW }), { maxLength: 5 }),
    waiting: work,
    active: work,
  });
  const looks = fc
    .array(fc.tuple(fc.nat(300), observation, fc.nat(500)), { minLength: 1, maxLength: 12 })
    .map((all) => {
      let total = 0;
      const sorted = all.toSorted(([a], [b]) => b - a);
      return sorted.map(([ago, seen, more]) => ({ ago, seen: { ...seen, arrived_work_s: (total += more) } }));
    });
  const options = fc.record({
    minimum: fc.nat(3),
    maximum: fc.integer({ min: 1, max: 30 }),
    scaledown_s: fc.constantFrom(0, 60, 600),
    cold_start_s: fc.constantFrom(0, 2, 70),
    break_even: fc.constantFrom(0, 1, 3),
    samples_per_worker: fc.constantFrom(1, 8),
    always_warm: fc.option(fc.record({ workers: fc.integer({ min: 1, max: 4 }) })),
  });
  test("never above the maximum, never below the minimum, never below what works, and never empty with work", () => {
    fc.assert(
      fc.property(looks, options, (all, options) => {
        const { desired } = decide(historyOf(all, options), NOW, options);
        const { ready = 0, starting_since_ms = [], waiting = NONE, active = NONE } = last(all);
        const floor = Math.max(options.minimum, options.always_warm?.workers ?? 0);
        expect(desired).toBeLessThanOrEqual(options.maximum);
        expect(desired).toBeGreaterThanOrEqual(Math.min(options.maximum, floor));
        const present = ready + starting_since_ms.length;
        const packed = Math.min(present, active.rollouts, Math.ceil(active.samples / options.samples_per_worker));
        expect(desired).toBeGreaterThanOrEqual(Math.min(options.maximum, packed));
        const atLeast = waiting.rollouts > 0 ? Math.max(1, present) : Math.min(1, active.rollouts);
        expect(desired).toBeGreaterThanOrEqual(Math.min(options.maximum, atLeast));
      }),
    );
  });

  test("more backlog never means fewer workers", () => {
    fc.assert(
      fc.property(looks, options, work, (all, options, more) => {
        const { waiting = NONE } = last(all);
        const longer = {
          rollouts: waiting.rollouts + more.rollouts,
          samples: waiting.samples + more.samples,
          work_s: waiting.work_s + more.work_s,
        };
        const [before, after] = [waiting, longer].map((waiting) => {
          const changed = [...all.slice(0, -1), { ago: all.at(-1)?.ago ?? 0, seen: { ...last(all), waiting } }];
          return decide(historyOf(changed, options), NOW, options).desired;
        });
        expect(after).toBeGreaterThanOrEqual(before ?? 0);
      }),
    );
  });

  test("deciding again after the starts that were decided starts nobody", () => {
    fc.assert(
      fc.property(looks, options, (all, options) => {
        const history = historyOf(all, options);
        const { desired } = decide(history, NOW, options);
        const { ready = 0, starting_since_ms = [] } = last(all);
        const started = Array.from({ length: Math.max(0, desired - ready - starting_since_ms.length) }, () => NOW);
        const after = { ...IDLE, ...last(all), starting_since_ms: [...starting_since_ms, ...started] };
        const again = decide(observe(history, after, NOW, options), NOW, options);
        expect(again.desired).toBeLessThanOrEqual(Math.max(desired, ready + starting_since_ms.length));
      }),
    );
  });
});

/** A pool under a load that does not change, of rollouts in even distances: its sizes, one for each few seconds. */
function sizesUnder(load: number): Float64Array {
  const seconds = 4_000;
  const at = Array.from({ length: Math.floor((seconds * load) / ROLLOUT_S) }, (_, n) => (n * ROLLOUT_S) / load);
  const trace = traceOf(at.map((at_s) => ({ at_s, frames: 49, realtime: true, customer: "a" })));
  const scaling = { ...OPTIONS, samples_per_worker: 1 };
  const clock = { look_every_s: 1, horizon_s: seconds };
  return simulate({ trace, scaling, seconds_per_frame: ROLLOUT_S / 49, ...clock }).timeline.workers;
}

test.each([0.3, 1, 1.7, 4.5, 9.9, 40])(
  "under a constant load of %d workers it grows, settles and does not flap",
  (load) => {
    const sizes = sizesUnder(load).slice(1, -1);
    const ways = Array.from(sizes, (size, n) => Math.sign(size - (sizes[Math.max(0, n - 1)] ?? 0))).filter(
      (way) => way !== 0,
    );
    const turns = ways.filter((way, n) => n > 0 && way !== ways[n - 1]);
    expect(turns.length).toBeLessThanOrEqual(1); // what cleared the backlog of the cold starts may go again
    const settled = sizes.slice(-150);
    expect(new Set(settled).size).toBe(1);
    expect(settled[0]).toBeGreaterThanOrEqual(Math.min(20, Math.ceil(load)));
    expect(settled[0]).toBeLessThanOrEqual(Math.min(20, Math.ceil(load) + 1));
  },
);

describe("which workers go", () => {
  test("those without work, idle longest first, never one with work", () => {
    const candidates = [
      { name: "busy", jobs: 1, idle_since_ms: 0 },
      { name: "fresh", jobs: 0, idle_since_ms: 9 },
      { name: "old", jobs: 0, idle_since_ms: 1 },
      { name: "middle", jobs: 0, idle_since_ms: 5 },
    ];
    expect(chooseDrains(candidates, 2)).toEqual(["old", "middle"]);
    expect(chooseDrains(candidates, 4)).toEqual(["old", "middle", "fresh"]);
    expect(chooseDrains(candidates, 0)).toEqual([]);
    expect(chooseDrains(candidates, -1)).toEqual([]);
  });
});

describe("the cold start of a bundle", () => {
  test.each<[string, number[], number]>([
    ["nothing measured: the manifest's word", [], 70],
    ["one start that took for ever changes nothing", [3_000], 70],
    ["two agree: half way", [30, 30], 50],
    ["three agree: theirs", [30, 30, 30], 30],
    ["one that hung among many changes little", [30, 31, 32, 33, 900], 33],
    [
      "what has become slower is believed",
      [...Array.from({ length: 20 }, () => 10), ...Array.from({ length: 9 }, () => 40)],
      40,
    ],
  ])("%s", (_name, measured, expected) => {
    expect(estimateColdStart(70, measured)).toBe(expected);
  });

  test("less than half of wild measurements never lead it outside of the others", () => {
    const sane = fc.array(fc.double({ min: 50, max: 90, noNaN: true }), { minLength: 4, maxLength: 8 });
    const wild = fc.array(fc.double({ min: 0, max: 1e6, noNaN: true }), { maxLength: 5 });
    fc.assert(
      fc.property(sane, wild, (sane, wild) => {
        const estimate = estimateColdStart(70, [...wild, ...sane]);
        expect(estimate).toBeGreaterThanOrEqual(50);
        expect(estimate).toBeLessThanOrEqual(90);
      }),
    );
  });

  test.each([-1, Number.NaN, Number.POSITIVE_INFINITY])("%d is no measurement", (measured) => {
    expect(() => estimateColdStart(70, [measured])).toThrow("expected seconds of a cold start");
  });
});
