import * as fc from "fast-check";
import { describe, expect, test } from "vitest";

import { SCALING_DEFAULTS, type ScalingOptions } from "#scheduler/scaling/policy.ts";
import { bestService, compare } from "#scheduler/simulate/compare.ts";
import { createLevels, rentOf } from "#scheduler/simulate/levels.ts";
import { createLine } from "#scheduler/simulate/line.ts";
import { simulate } from "#scheduler/simulate/simulate.ts";
import { framesOf, parseTrace, type Request, traceOf } from "#scheduler/simulate/trace.ts";
import { generate, WORKLOADS } from "#scheduler/simulate/workloads.ts";

const ROLLOUT_S = 4;
const PER_FRAME_S = ROLLOUT_S / 49;
const LOOK_EVERY_S = 1;
const SCALING: ScalingOptions = { ...SCALING_DEFAULTS, maximum: 5, samples_per_worker: 1, cold_start_s: 70 };

const request = (at_s: number, overrides: Partial<Request> = {}): Request => ({
  at_s,
  frames: 49,
  realtime: true,
  customer: "a",
  ...overrides,
});

const run = (requests: readonly Request[], overrides: Partial<ScalingOptions> = {}) =>
  simulate({
    trace: traceOf(requests),
    scaling: { ...SCALING, ...overrides },
    seconds_per_frame: PER_FRAME_S,
    look_every_s: LOOK_EVERY_S,
    horizon_s: 1_000,
  });

describe("one pool under a simulated clock", () => {
  test("a single request pays a start, its work and the window, and waits for the start", () => {
    const { rent_s, starts, waits_s, optimum } = run([request(5.5)]);
    expect({ rent_s, starts, waits_s: [...waits_s] }).toEqual({
      rent_s: { starting: 70, busy: 4, idle: 60 },
      starts: 1,
      waits_s: [70],
    });
    expect(optimum.rent_s).toEqual({ starting: 70, busy: 4, idle: 0 });
  });

  test("a second one within the window is served at once, a later one waits again", () => {
    expect([...run([request(0), request(133)]).waits_s]).toEqual([70, 0]);
    expect([...run([request(0), request(136)]).waits_s]).toEqual([70, 70]);
  });

  test("an always-warm worker is paid for until the horizon, and nobody waits once it is ready", () => {
    const { rent_s, starts, waits_s } = run([request(100), request(500)], { always_warm: { workers: 1 } });
    expect(starts).toBe(1);
    expect([...waits_s]).toEqual([0, 0]);
    expect(rentOf({ rent_s, starts, peak_workers: 1 })).toBeCloseTo(1_000, -1);
  });

  test("a batch takes the workers that pay, and no more", () => {
    const batch = Array.from({ length: 100 }, () => request(0)); // 400 s of work: five starts of 70 s at break-even
    expect(run(batch).peak_workers).toBe(5);
    expect(run(batch, { break_even: 3 }).peak_workers).toBe(1);
  });

  const requests = fc
    .array(fc.record({ pause: fc.integer({ min: 0, max: 300 }), count: fc.integer({ min: 1, max: 40 }) }), {
      minLength: 1,
      maxLength: 8,
    })
    .map((groups) => {
      let at = 0;
      return groups.flatMap(({ pause, count }) => {
        at += pause;
        return Array.from({ length: count }, () => request(at));
      });
    });

  test("everybody is served, all work is done, and no run is cheaper than the cheapest for its service", () => {
    fc.assert(
      fc.property(requests, fc.constantFrom(0, 20, 60, 200), fc.integer({ min: 1, max: 5 }), (all, window, maximum) => {
        const ran = run(all, { scaledown_s: window, maximum });
        expect(ran.rent_s.busy).toBeCloseTo(all.length * ROLLOUT_S, 6);
        expect(ran.optimum.rent_s.busy).toBeCloseTo(all.length * ROLLOUT_S, 6);
        expect(Math.min(...ran.waits_s)).toBeGreaterThanOrEqual(0);
        expect(ran.peak_workers).toBeLessThanOrEqual(maximum);
        expect(rentOf(ran)).toBeGreaterThanOrEqual(rentOf(ran.optimum) - 1e-6);
      }),
      { numRuns: 60 },
    );
  });

  test("one worker never costs more than 1 + window / cold start times who knew the future and made nobody wait for a start", () => {
    fc.assert(
      fc.property(requests, fc.constantFrom(10, 60, 70), (all, window) => {
        const scaling = { ...SCALING, scaledown_s: window, maximum: 1 };
        const best = bestService(traceOf(all), scaling, PER_FRAME_S);
        // The scaler sees an idle worker a look later.
        const bound = 1 + (window + LOOK_EVERY_S) / SCALING.cold_start_s;
        expect(rentOf(run(all, scaling)) / rentOf(best)).toBeLessThanOrEqual(bound);
      }),
      { numRuns: 60 },
    );
  });
});

/** All rentals of at least `profile`, second by second, at most `most` workers. */
function cheapestByTrying(profile: readonly number[], coldStartS: number, most: number): number {
  let costs = new Map([[0, 0]]);
  for (const busy of profile) {
    const after = new Map<number, number>();
    for (const [before, cost] of costs) {
      for (let rented = busy; rented <= most; rented += 1) {
        const next = cost + rented + Math.max(0, rented - before) * coldStartS;
        after.set(rented, Math.min(after.get(rented) ?? Number.POSITIVE_INFINITY, next));
      }
    }
    costs = after;
  }
  return Math.min(...costs.values());
}

describe("the cheapest rental for a profile of busy workers", () => {
  test("is what trying all of them finds", () => {
    const profiles = fc.array(fc.nat(4), { minLength: 1, maxLength: 25 });
    fc.assert(
      fc.property(profiles, fc.integer({ min: 0, max: 6 }), (profile, coldStartS) => {
        const levels = createLevels(coldStartS);
        let before = 0;
        for (const [second, busy] of [...profile, 0].entries()) {
          for (; before < busy; before += 1) levels.rise(second);
          for (; before > busy; before -= 1) levels.fall(second);
        }
        expect(rentOf(levels.cheapest())).toBeCloseTo(cheapestByTrying(profile, coldStartS, 4), 6);
      }),
    );
  });
});

test("those who wait are served realtime first, and customers in turns", () => {
  const trace = traceOf([
    ...Array.from({ length: 3 }, () => request(0, { customer: "many" })),
    request(1, { customer: "few" }),
    request(0, { customer: "bulk", realtime: false }),
  ]);
  const line = createLine(trace);
  for (let n = 0; n < trace.length; n += 1) line.push(n);
  const order = Array.from({ length: trace.length }, () => trace.customers[trace.customer[line.take() ?? 0] ?? 0]);
  expect(order).toEqual(["many", "few", "many", "many", "bulk"]);
  expect(line.take()).toBeNull();
});

describe("traces", () => {
  const options = {
    frames: 49_000,
    hours: 30,
    scaledown_s: 60,
    cold_start_s: 70,
    seconds_per_frame: PER_FRAME_S,
    look_every_s: LOOK_EVERY_S,
  };

  test.each(WORKLOADS)("%s: the same seed gives the same requests, in order and within its time", (workload) => {
    const trace = generate(workload, { ...options, seed: 7 });
    expect(generate(workload, { ...options, seed: 7 })).toEqual(trace);
    expect(trace.at_s).toEqual(trace.at_s.toSorted());
    expect(trace.at_s[0]).toBeGreaterThanOrEqual(0);
    expect(trace.at_s.at(-1)).toBeLessThan(options.hours * 3600 * 1.1); // a last burst may run over
    // One request each 136 s is all that an adversary can do.
    const frames = workload === "adversary" ? Math.floor((options.hours * 3600) / 136) * 49 : options.frames;
    expect(Math.abs(framesOf(trace) - frames)).toBeLessThan(8 * 49);
  });

  test("the adversary makes every request wait for a start, whatever the window", () => {
    for (const scaledown_s of [0, 60, 600]) {
      const trace = generate("adversary", { ...options, hours: 3, scaledown_s, seed: 1 });
      const scaling = { ...SCALING, scaledown_s };
      const clock = { look_every_s: LOOK_EVERY_S, horizon_s: 0 };
      const { starts, waits_s } = simulate({ trace, scaling, seconds_per_frame: PER_FRAME_S, ...clock });
      expect(starts).toBe(trace.length);
      expect(Math.min(...waits_s)).toBeCloseTo(70, 6);
    }
  });

  test("a file's lines may be in any order; K counts K", () => {
    const trace = parseTrace(
      '{"at_s": 9, "frames": 49, "k": 8, "lane": "bulk", "customer": "b"}\n\n{"at_s":1,"frames":10}\n',
    );
    expect({ ...trace, at_s: [...trace.at_s], frames: [...trace.frames] }).toMatchObject({
      length: 2,
      at_s: [1, 9],
      frames: [10, 392],
      customers: ["customer", "b"],
    });
  });

  test.each([
    ["", "there is no request in it"],
    ['{"at_s": 1, "frames": 49}\nnonsense', "line 2 is no JSON"],
    ['{"at_s": -1, "frames": 49}', "line 1: at_s"],
    ['{"at_s": 1}', "line 1: "],
    ['{"at_s": 1, "frames": 49, "lane": "fast"}', "line 1: lane"],
    ['{"at_s": 1, "frames": 49, "candidates": 8}', "line 1: "],
  ])("%j is none", (text, message) => {
    expect(() => parseTrace(text)).toThrow(message);
    expect(() => parseTrace(text)).toThrow('expected {"at_s": 0.5, "frames": 49}');
  });
});

test("a comparison has this policy, the three others and the clairvoyants, at the published prices", () => {
  const { rows, revenue_usd, timelines } = compare({
    trace: traceOf([request(0), request(1_000)]),
    scaling: SCALING,
    seconds_per_frame: PER_FRAME_S,
    look_every_s: LOOK_EVERY_S,
    horizon_s: 3_600,
    warm_workers: 1,
    usd_per_hour: 3.95,
    price_usd_per_frame: 0.0005,
  });
  expect(revenue_usd).toBeCloseTo(0.049, 10);
  expect(timelines).toHaveLength(4);
  expect(rows.map(({ policy, worker_hours, starts }) => [policy, Math.round(worker_hours * 3600), starts])).toEqual([
    ["this policy (60 s window)", 2 * (70 + 4 + 60), 2],
    ["always warm (1)", 3_600, 1],
    ["to zero at once", 2 * (70 + 4), 2],
    ["600 s window", 2 * (70 + 4 + 600), 2],
    ["clairvoyant, same service", 2 * (70 + 4), 2],
    ["clairvoyant, best service", 2 * (70 + 4), 2],
  ]);
  expect(rows[0]).toMatchObject({ realtime_wait_s: { p50: 70, p99: 70, max: 70 }, bulk_wait_s: null });
  expect(rows[0]?.cost_usd).toBeCloseTo((268 / 3600) * 3.95, 10);
});
