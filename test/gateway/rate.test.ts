import * as fc from "fast-check";
import { describe, expect, test } from "vitest";

import { createByteBudget } from "#gateway/input/byte-budget.ts";
import { decideRate, type RatePolicy, windowSeconds } from "#gateway/gcra.ts";

const DEFAULT: RatePolicy = { per_second: 50, burst: 200 };

/** Requests at these times (ms); how many pass. */
function passed(policy: RatePolicy, times: readonly number[]): number {
  let state: number | undefined;
  let count = 0;
  for (const now of times) {
    const decision = decideRate(state, policy, now);
    state = decision.full_at_ms;
    if (decision.allowed) count += 1;
  }
  return count;
}

const every = (stepMs: number, totalMs: number): number[] =>
  Array.from({ length: Math.floor(totalMs / stepMs) }, (_unused, index) => index * stepMs);

describe("the policy", () => {
  test("a fresh key may burst 200 at once and no more", () => {
    expect(
      passed(
        DEFAULT,
        Array.from({ length: 500 }, () => 1_000),
      ),
    ).toBe(200);
  });

  test("saturated for 4 s, 50/s with a burst of 200 let 400 through", () => {
    expect(passed(DEFAULT, every(1, 4_000))).toBeGreaterThanOrEqual(399);
    expect(passed(DEFAULT, every(1, 4_000))).toBeLessThanOrEqual(400);
  });

  test("a planner of ten decisions a second always passes", () => {
    expect(passed(DEFAULT, every(100, 60_000))).toBe(600);
  });

  test("says when to come back, and means it", () => {
    const policy = { per_second: 2, burst: 1 };
    const first = decideRate(undefined, policy, 1_000);
    expect(first).toMatchObject({ allowed: true, remaining: 0 });
    const second = decideRate(first.full_at_ms, policy, 1_100);
    expect(second).toMatchObject({ allowed: false, retry_after_ms: 400 });
    expect(decideRate(second.full_at_ms, policy, 1_499).allowed).toBe(false);
    expect(decideRate(second.full_at_ms, policy, 1_500).allowed).toBe(true);
  });

  test("a refused request costs nothing", () => {
    const policy = { per_second: 1, burst: 1 };
    expect(passed(policy, [0, 1, 2, 3, 4, 1_000])).toBe(2);
  });

  test("counts down what remains", () => {
    let state: number | undefined;
    const remaining = [];
    for (let i = 0; i < 3; i++) {
      const decision = decideRate(state, { per_second: 3, burst: 3 }, 0);
      state = decision.full_at_ms;
      remaining.push(decision.remaining);
    }
    expect(remaining).toEqual([2, 1, 0]);
  });

  test("the window is the time in which an empty bucket fills", () => {
    expect(windowSeconds(DEFAULT)).toBe(4);
  });

  test("never lets more through than burst + rate × time", () => {
    const policies = fc.record({
      per_second: fc.integer({ min: 1, max: 100 }),
      burst: fc.integer({ min: 1, max: 300 }),
    });
    const gaps = fc.array(fc.nat(200), { minLength: 1, maxLength: 400 });
    fc.assert(
      fc.property(policies, gaps, (policy, steps) => {
        let now = 0;
        const times = steps.map((step) => (now += step));
        const span = now - (times[0] ?? 0);
        expect(passed(policy, times)).toBeLessThanOrEqual(policy.burst + (policy.per_second * span) / 1000 + 1e-6);
      }),
    );
  });
});

const empty = (policy: RatePolicy): number => {
  let state: number | undefined;
  for (let i = 0; i < policy.burst; i++) state = decideRate(state, policy, 0).full_at_ms;
  return state ?? 0;
};

describe("a policy that changed", () => {
  test("raised: a bucket that would have been dry for long is at once on the new rate", () => {
    const raised = { per_second: 100, burst: 100 };
    let state = empty({ per_second: 1, burst: 100 }); // full again in 100 s
    const times = every(1, 10_000);
    let count = 0;
    for (const now of times) {
      const decision = decideRate(state, raised, now);
      state = decision.full_at_ms;
      if (decision.allowed) count += 1;
    }
    expect(count).toBeGreaterThanOrEqual(999);
    expect(count).toBeLessThanOrEqual(1_001);
  });

  test("lowered: what is left of the bucket is the new burst at most", () => {
    const lowered = { per_second: 1, burst: 3 };
    let state = empty({ per_second: 100, burst: 100 }); // full again in a second
    let count = 0;
    for (let i = 0; i < 10; i++) {
      const decision = decideRate(state, lowered, 0);
      state = decision.full_at_ms;
      if (decision.allowed) count += 1;
    }
    expect(count).toBe(2);
  });

  test("a clock that was set back by an hour refuses nobody for an hour", () => {
    const policy = { per_second: 2, burst: 4 };
    const hour = 3_600_000;
    let state: number | undefined = hour + 500;
    const decisions = [0, 100, 600].map((now) => {
      const decision = decideRate(state, policy, now);
      state = decision.full_at_ms;
      return decision.allowed;
    });
    expect(decisions).toEqual([true, false, true]);
  });
});

test("bodies are held up to a limit, and room comes back", () => {
  const budget = createByteBudget(100);
  budget.take(60);
  expect(() => budget.take(41)).toThrow("too many uploads at once");
  budget.give(60);
  budget.take(100);
});
