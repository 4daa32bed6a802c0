/** The load generator of bench/peers: what it offers and how it counts decides what the comparison is worth. */
import { describe, expect, test } from "vitest";

import { closedLoop, openLoop, percentile, poissonArrivals, slopePerS } from "../../bench/peers/load.ts";

describe("poissonArrivals", () => {
  test("come at the rate that was asked for, with exponential gaps, and the same for the same seed", () => {
    const arrivals = poissonArrivals(50, 200, 7);
    expect(poissonArrivals(50, 200, 7)).toEqual(arrivals);
    expect(poissonArrivals(50, 200, 8)).not.toEqual(arrivals);
    // 10,000 expected; four standard deviations are 400.
    expect(Math.abs(arrivals.length - 10_000)).toBeLessThan(400);
    const gaps = arrivals.slice(1).map((at, i) => at - (arrivals[i] ?? Number.NaN));
    const longer = gaps.filter((gap) => gap > 20).length / gaps.length;
    expect(longer).toBeCloseTo(Math.exp(-1), 1); // of exponential gaps, 37 % are longer than the mean
  });

  test("are one at least, however low the rate", () => {
    expect(poissonArrivals(0.001, 1, 1)).toEqual([0]);
  });
});

describe("openLoop", () => {
  test("offers the next request although none was answered", async () => {
    const all = Promise.withResolvers<void>();
    let waiting = 0;
    const loop = await openLoop(() => {
      if (++waiting === 5) all.resolve();
      return all.promise;
    }, [0, 1, 2, 3, 4]);
    expect(loop.latenciesMs).toHaveLength(5);
  });

  test("counts from when a request was due, also when the generator came late", async () => {
    const busyMs = 60;
    let first = true;
    const { latenciesMs } = await openLoop(() => {
      const until = performance.now() + (first ? busyMs : 0);
      first = false;
      while (performance.now() < until); // the generator's own thread: nothing else can be sent meanwhile
      return Promise.resolve();
    }, [0, 1]);
    expect(latenciesMs[0]).toBeGreaterThanOrEqual(busyMs - 5);
  });

  test("counts failures and leaves them out of the latencies", async () => {
    const { latenciesMs, failed } = await openLoop(
      (number) => (number === 1 ? Promise.reject(new Error("refused, as the test wants")) : Promise.resolve()),
      [0, 1, 2],
    );
    expect({ answered: latenciesMs.length, failed }).toEqual({ answered: 2, failed: 1 });
  });
});

describe("closedLoop", () => {
  test("keeps as many requests under way as there are callers, until time and answers are enough", async () => {
    let [now, most, answers] = [0, 0, 0];
    await closedLoop(
      async () => {
        most = Math.max(most, ++now);
        await new Promise(setImmediate);
        now -= 1;
        answers += 1;
      },
      4,
      0.01,
      100,
    );
    expect(most).toBe(4);
    expect(answers).toBeGreaterThanOrEqual(100);
  });

  test("does not hide a failure", async () => {
    await expect(closedLoop(() => Promise.reject(new Error("refused")), 2, 0.01, 10)).rejects.toThrow("refused");
  });
});

test("a rate does not depend on where the window cuts a batch", () => {
  // Batches of eight every two seconds.
  const times = Array.from({ length: 160 }, (_, i) => 2_000 * Math.floor(i / 8));
  for (let cut = 0; cut < 8; cut++) expect(slopePerS(times.slice(cut))).toBeCloseTo(4, 1);
});

test("a rate of one moment is no rate", () => {
  expect(() => slopePerS([5, 5, 5])).toThrow("too few");
});

test("percentiles are nearest ranks", () => {
  const hundred = Array.from({ length: 100 }, (_, i) => i + 1);
  expect([percentile(hundred, 50), percentile(hundred, 99), percentile([7], 99)]).toEqual([50, 99, 7]);
});
