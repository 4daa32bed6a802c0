/** What bench/batching offers, and that its policies are what they are called. */
import { describe, expect, test } from "vitest";

import { arrivalsOf, mixedRequests, type MixedRequest } from "../../bench/batching/mix.ts";
import { POLICIES, POLICY_NAMES, type Submit } from "../../bench/batching/policies.ts";
import { type Answer, chartOf, figuresOf, linesOf, type Run } from "../../bench/batching/report.ts";

const MIX = { lengths: [12, 24], steps: [1, 2], guidance: 1.5 };

describe("arrivals", () => {
  const arrivals = arrivalsOf(20_000, 50, 7);

  test("are as many as asked for in the time of the rate, the same for the same seed and denser at a higher rate", () => {
    expect(arrivals).toHaveLength(20_000);
    expect(arrivals.at(-1)).toBeLessThan(400_000);
    expect(arrivalsOf(20_000, 50, 7)).toEqual(arrivals);
    expect(arrivalsOf(20_000, 50, 8)).not.toEqual(arrivals);
    const [here, there] = [arrivals[99], arrivalsOf(20_000, 100, 7)[99]];
    expect(there).toBeCloseTo((here ?? Number.NaN) / 2, 6);
  });

  test("have a Poisson process's gaps: never negative, and 37 % of them longer than the mean", () => {
    const gaps = arrivals.slice(1).map((at, i) => at - (arrivals[i] ?? Number.NaN));
    expect(Math.min(...gaps)).toBeGreaterThanOrEqual(0);
    expect(gaps.filter((gap) => gap > 20).length / gaps.length).toBeCloseTo(Math.exp(-1), 1);
  });
});

test("every deck asks for the same kinds of work, in an order and in pairings of the seed's", () => {
  const requests = mixedRequests(3, MIX, 6);
  expect(mixedRequests(3, MIX, 6)).toEqual(requests);
  expect(mixedRequests(3, MIX, 7)).not.toEqual(requests);
  expect(new Set(requests.map(({ seed }) => seed)).size).toBe(48);
  for (let deck = 0; deck < 3; deck++) {
    const cards = requests.slice(16 * deck, 16 * (deck + 1));
    const count = (is: (request: MixedRequest) => boolean): number => cards.filter(is).length;
    expect([
      count(({ k }) => k === 8),
      count(({ k }) => k === 1),
      count(({ lane }) => lane === "bulk"),
      count(({ guidance }) => guidance === 1.5),
      count(({ actions }) => actions === 24),
      count(({ numSteps }) => numSteps === 2),
    ]).toEqual([2, 14, 6, 4, 8, 8]);
  }
});

const requestOf = (seed: number, k: number): MixedRequest => {
  return { k, lane: "bulk", actions: 12, numSteps: 1, guidance: 0, seed: BigInt(seed) };
};

/** An engine that records what it is given and is done when told. */
function createScriptedEngine() {
  const given: { readonly name: string; readonly finish: (error?: Error) => void }[] = [];
  const submit: Submit = ({ seed }, { candidates, lanes }) => {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const finish = (error?: Error): void => (error ? reject(error) : resolve());
    given.push({ name: `${seed}:${candidates.join("")} ${lanes}`, finish });
    return promise;
  };
  return {
    submit,
    given: () => given.map(({ name }) => name),
    async finish(place: number, error?: Error): Promise<void> {
      given[place]?.finish(error);
      await new Promise(setImmediate);
    },
  };
}

describe("policies", () => {
  test("continuous: everything at once, each in its own lane", () => {
    const engine = createScriptedEngine();
    const serve = POLICIES["continuous batching"](engine.submit);
    for (const [seed, k] of [1, 8, 1].entries()) void serve(requestOf(seed, k), () => undefined);
    expect(engine.given()).toEqual(["0:0 own", "1:01234567 own", "2:0 own"]);
  });

  test("to completion: what waits and fits starts together, and nobody else before its last is done", async () => {
    const engine = createScriptedEngine();
    const serve = POLICIES["batches run to completion"](engine.submit, 8);
    for (const [seed, k] of [1, 1, 1, 8, 1].entries()) void serve(requestOf(seed, k), () => undefined);
    expect(engine.given()).toEqual(["0:0 one"]);
    await engine.finish(0);
    const second = ["0:0 one", "1:0 one", "2:0 one"]; // the eight do not fit beside them, and the last does not overtake
    expect(engine.given()).toEqual(second);
    await engine.finish(2);
    expect(engine.given()).toEqual(second);
    await engine.finish(1);
    expect(engine.given()).toEqual([...second, "3:01234567 one"]);
    await engine.finish(3);
    expect(engine.given().at(-1)).toBe("4:0 one");
  });

  test("no batching: one sample at a time, also of a request of two", async () => {
    const engine = createScriptedEngine();
    const serve = POLICIES["no batching"](engine.submit);
    const done: number[] = [];
    for (const [seed, k] of [2, 1].entries()) {
      void serve(requestOf(seed, k), () => undefined).then(() => done.push(seed));
    }
    for (const [place, now] of [["0:0 one"], ["0:0 one", "0:1 one"], ["0:0 one", "0:1 one", "1:0 one"]].entries()) {
      expect(engine.given()).toEqual(now);
      await engine.finish(place);
    }
    expect(done).toEqual([0, 1]);
  });

  test.each(POLICY_NAMES)("%s: an engine's failure reaches who asked, and the next is served", async (name) => {
    const engine = createScriptedEngine();
    const serve = POLICIES[name](engine.submit, 8);
    const broken = new Error("broken, as the test wants");
    const failure = serve(requestOf(0, 1), () => undefined).catch((error: unknown) => error);
    await engine.finish(0, broken);
    expect(await failure).toBe(broken);
    const next = serve(requestOf(1, 1), () => undefined);
    await engine.finish(1);
    await expect(next).resolves.toBeUndefined();
  });
});

const answersOf = (stretch: number): Answer[] =>
  Array.from({ length: 100 }, (_, i): Answer => {
    const request = { ...requestOf(i, 1), lane: i % 2 === 0 ? "realtime" : "bulk" } as const;
    return { request, firstFrameMs: i + 1, doneMs: stretch * (i + 1) };
  });

describe("the report", () => {
  const runs = [null, 0.5].flatMap((load) =>
    POLICY_NAMES.map((policy, i): Run => {
      return { policy, load, seconds: 10 * (i + 1), samples_a_forward: 4 - i, answers: answersOf(10 * (i + 1)) };
    }),
  );

  test("has percentiles of each lane and of all", () => {
    const { lanes, requests_per_s, frames_per_s } = figuresOf({ answers: answersOf(10), seconds: 10 });
    expect(lanes.all).toEqual({ p50_ms: 500, p99_ms: 990, first_frame_p50_ms: 50, first_frame_p99_ms: 99 });
    expect([lanes.realtime.p99_ms, lanes.bulk.p99_ms]).toEqual([990, 1000]);
    expect([requests_per_s, frames_per_s]).toEqual([10, 120]);
  });

  test("sets every policy beside the one without batching", () => {
    const lines = linesOf({ model: "m", mix: "a mix", runs }).join("\n");
    expect(lines).toContain("| continuous batching | 10.00 | 120.0 | 3.00 | 4.00 |");
    expect(lines).toContain("| batches run to completion | all | 5.00 | 1000 ms | 1980 ms | 0.67 |");
    expect(lines).toContain("| no batching | bulk |  | 1500 ms | 3000 ms | 1.00 |");
    expect(chartOf({ model: "m", mix: "a mix", runs })).toContain("batches, all");
  });
});
