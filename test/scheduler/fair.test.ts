import * as fc from "fast-check";
import { describe, expect, test } from "vitest";

import {
  type FairRow,
  type FairState,
  firstInLine,
  IDLE,
  inFairOrder,
  queuesOf,
  replayed,
  served,
} from "#scheduler/dispatch/fair.ts";

/** Of the arithmetic alone: virtual time is a quotient. */
const ROUNDING = 1e-6;

const weights: Record<string, number> = { a: 1, b: 2, c: 3, d: 1 };
const row = (customer_id: string, queued_ms: number, frames: number): FairRow => ({
  id: `${customer_id}-${String(queued_ms).padStart(6, "0")}`,
  customer_id,
  queued_ms,
  frames,
  weight: weights[customer_id] ?? 1,
});
const order = (state: FairState, rows: readonly FairRow[]): FairRow[] => [...inFairOrder(state, queuesOf(rows))];
const idsOf = (rows: readonly FairRow[]): string[] => rows.map(({ id }) => id);
/** Frames of each customer. */
function framesOf(rows: readonly FairRow[]): Record<string, number> {
  const frames: Record<string, number> = {};
  for (const each of rows) frames[each.customer_id] = (frames[each.customer_id] ?? 0) + each.frames;
  return frames;
}

/** What comes in before a round, and how many go in it: bursts, lulls, idle customers, one at a time or many at once. */
const traces = fc.array(
  fc.record({
    arrivals: fc.array(
      fc.record({
        customer: fc.constantFrom("a", "b", "c", "d"),
        frames: fc.oneof(fc.integer({ min: 1, max: 10 }), fc.integer({ min: 1, max: 240 * 32 })),
      }),
      { maxLength: 12 },
    ),
    taken: fc.nat({ max: 8 }),
  }),
  { minLength: 1, maxLength: 40 },
);
type Trace = typeof traces extends fc.Arbitrary<infer T> ? T : never;

interface Step {
  readonly went: FairRow;
  /** What waited when it was chosen, itself too, oldest first. */
  readonly waiting: readonly FairRow[];
}

/** Each rollout that goes, one after the other; at the end all that is left goes, too. */
function play(trace: Trace, view: (state: FairState, rows: FairRow[], count: number) => FairRow[] = fullView): Step[] {
  let state = IDLE;
  let waiting: FairRow[] = [];
  let clock = 0;
  const steps: Step[] = [];
  const go = (count: number): void => {
    const going = view(state, waiting, count);
    state = served(state, going);
    for (const went of going) {
      steps.push({ went, waiting });
      waiting = waiting.filter((each) => each !== went);
    }
  };
  for (const { arrivals, taken } of trace) {
    for (const { customer, frames } of arrivals) waiting.push(row(customer, ++clock, frames));
    waiting = [...waiting];
    go(taken);
  }
  go(waiting.length);
  return steps;
}
const fullView = (state: FairState, rows: FairRow[], count: number): FairRow[] => order(state, rows).slice(0, count);

const largest = (steps: readonly Step[], customer: string): number =>
  Math.max(0, ...steps.filter(({ went }) => went.customer_id === customer).map(({ went }) => went.frames));
const share = (steps: readonly Step[], customer: string): number => largest(steps, customer) / (weights[customer] ?? 1);

describe("among customers", () => {
  test("equal ones take turns by frames, whoever queued first and however many each has", () => {
    const rows = [...Array(20).keys()].map((n) => row("a", n, 10)).concat([100, 101].map((n) => row("d", n, 50)));
    expect(idsOf(order(IDLE, rows)).slice(0, 8)).toEqual([
      "a-000000",
      "d-000100",
      "a-000001",
      "a-000002",
      "a-000003",
      "a-000004",
      "a-000005",
      "d-000101",
    ]);
  });

  test("three times the weight is given three times the frames", () => {
    const rows = ["a", "c"].flatMap((customer) => [...Array(40).keys()].map((n) => row(customer, n, 48)));
    expect(framesOf(order(IDLE, rows).slice(0, 40))).toEqual({ a: 10 * 48, c: 30 * 48 });
  });

  test("whoever comes back from idle goes at once, and has saved nothing up", () => {
    const busy = [...Array(100).keys()].map((n) => row("a", n, 48));
    const state = served(IDLE, busy);
    const back = [...Array(10).keys()].map((n) => row("d", 200 + n, 48));
    const more = [...Array(10).keys()].map((n) => row("a", 100 + n, 48));
    const next = order(state, [...more, ...back]);
    expect(next[0]?.customer_id).toBe("d");
    expect(framesOf(next.slice(0, 9))).toEqual({ a: 4 * 48, d: 5 * 48 });
  });

  test("while two have rollouts waiting, what they are given differs by one rollout of each at most", () => {
    fc.assert(
      fc.property(
        traces,
        fc.constantFrom(["a", "b"], ["a", "d"], ["b", "c"], ["c", "d"]),
        (trace, [i = "", j = ""]) => {
          const steps = play(trace);
          const bound = share(steps, i) + share(steps, j);
          for (let from = 0; from < steps.length; from++) {
            const given = { i: 0, j: 0 };
            for (const { went, waiting } of steps.slice(from)) {
              const both = [i, j].every((customer) => waiting.some(({ customer_id }) => customer_id === customer));
              if (!both) break;
              if (went.customer_id === i) given.i += went.frames / went.weight;
              if (went.customer_id === j) given.j += went.frames / went.weight;
              expect(Math.abs(given.i - given.j)).toBeLessThanOrEqual(bound + ROUNDING);
            }
          }
        },
      ),
    );
  });

  test("nobody starves: what others are given before a rollout goes has a bound, whatever they send", () => {
    fc.assert(
      fc.property(traces, (trace) => {
        const steps = play(trace);
        steps.forEach(({ went }, end) => {
          const begin = steps.findIndex(({ waiting }) => waiting.includes(went));
          const own = steps[begin]?.waiting.filter(({ customer_id }) => customer_id === went.customer_id) ?? [];
          const ahead = own.slice(0, own.indexOf(went)).reduce((sum, { frames }) => sum + frames, 0);
          const before = framesOf(steps.slice(begin, end).map(({ went }) => went));
          for (const [other, frames] of Object.entries(before)) {
            if (other === went.customer_id) continue;
            const weight = weights[other] ?? 1;
            const most = (weight * (ahead + largest(steps, went.customer_id))) / went.weight + largest(steps, other);
            expect(frames).toBeLessThanOrEqual(most + ROUNDING);
          }
        });
      }),
    );
  });

  test("everything that waits goes, once, each customer's own first come, first served", () => {
    fc.assert(
      fc.property(traces, (trace) => {
        const went = play(trace).map(({ went }) => went);
        expect(went).toHaveLength(trace.flatMap(({ arrivals }) => arrivals).length);
        expect(new Set(went).size).toBe(went.length);
        for (const own of Map.groupBy(went, ({ customer_id }) => customer_id).values()) {
          expect(own).toEqual(own.toSorted((a, b) => a.queued_ms - b.queued_ms));
        }
      }),
    );
  });

  test("the order is the same whoever is read first, and however many go in a round", () => {
    fc.assert(
      fc.property(traces, fc.nat(20), (trace, first) => {
        const rows = play(trace).flatMap(({ went }) => went);
        const inOrder = rows.toSorted((a, b) => a.queued_ms - b.queued_ms);
        const all = order(IDLE, inOrder);
        const shuffled = inOrder.toSorted((a, b) => b.customer_id.localeCompare(a.customer_id));
        expect(idsOf(order(IDLE, shuffled))).toEqual(idsOf(all));
        const state = served(IDLE, all.slice(0, first));
        const rest = inOrder.filter((each) => !all.slice(0, first).includes(each));
        expect(idsOf(order(state, rest))).toEqual(idsOf(all.slice(first)));
      }),
    );
  });

  test("reading a few rollouts of those first in line alone changes nothing", () => {
    fc.assert(
      fc.property(traces, fc.integer({ min: 1, max: 3 }), (trace, each) => {
        const narrowView = (state: FairState, rows: FairRow[], count: number): FairRow[] => {
          const going: FairRow[] = [];
          let [now, left] = [state, rows];
          while (going.length < count && left.length > 0) {
            const take = count - going.length;
            const heads = queuesOf(left).flatMap(({ rows }) => rows.slice(0, 1));
            const wanted = new Set(firstInLine(now, heads, take));
            const read = queuesOf(left).flatMap(({ rows }) =>
              wanted.has(rows[0]?.customer_id ?? "") ? rows.slice(0, each) : [],
            );
            const next = [...inFairOrder(now, queuesOf(read, each))].slice(0, take);
            expect(next.length).toBeGreaterThan(0);
            going.push(...next);
            [now, left] = [served(now, next), left.filter((row) => !next.includes(row))];
          }
          return going;
        };
        expect(idsOf(play(trace, narrowView).map(({ went }) => went))).toEqual(
          idsOf(play(trace).map(({ went }) => went)),
        );
      }),
    );
  });

  test("ten thousand with a backlog cost one sort and a path through a heap for each that goes", () => {
    const rows = [...Array(10_000).keys()].flatMap((n) => {
      const customer = `cus_${n}`;
      return [0, 1, 2, 3, 4].map((at) => row(customer, n * 5 + at, 1 + (n % 240)));
    });
    const queues = queuesOf(rows);
    const began = performance.now();
    const all = [...inFairOrder(IDLE, queues)];
    expect(all).toHaveLength(50_000);
    const first = all.slice(0, 10_000);
    const state = served(IDLE, first);
    expect(new Set(first.map(({ customer_id }) => customer_id)).size).toBe(10_000);
    expect(firstInLine(state, first, 12)).toHaveLength(12);
    // Some 150 ms; what is quadratic in either takes a minute.
    expect(performance.now() - began).toBeLessThan(5_000);
  });

  test.each([0, -1, Number.NaN, Number.POSITIVE_INFINITY])("frames of %s are refused", (frames) => {
    expect(() => served(IDLE, [row("a", 1, frames)])).toThrow(/expected both above 0/);
  });
});

/** With large rollouts beside small ones and a new leader for each: how much more the large ones are given, as a share of all. */
function advantage(lookedBack: number): number {
  const queued = { a: 0, d: 10_000 };
  let went: (FairRow & { dispatched_ms: number })[] = [];
  const given = { a: 0, d: 0 };
  for (let dispatched_ms = 0; dispatched_ms < 1_000; dispatched_ms++) {
    const [next] = order(replayed(went), [row("a", queued.a, 480), row("d", queued.d, 48)]);
    const customer = next?.customer_id === "a" ? "a" : "d";
    queued[customer] += 1;
    given[customer] += next?.frames ?? 0;
    if (next) went = [...went, { ...next, dispatched_ms }].slice(-lookedBack);
  }
  return (given.a - given.d) / (given.a + given.d);
}

describe("what was given", () => {
  test("a state knows no more customers than are ahead of the present", () => {
    const state = served(
      IDLE,
      [...Array(1_000).keys()].map((n) => row(`cus_${n}`, n, 48)),
    );
    const later = served(state, [row("cus_0", 1_000, 48), row("cus_0", 1_001, 48)]);
    expect(state.given.size).toBe(1_000);
    expect([...later.given.keys()]).toEqual(["cus_0"]);
  });

  test("the next leader goes on where the last one ended, from what was dispatched", () => {
    fc.assert(
      fc.property(traces, (trace) => {
        let [state, clock] = [IDLE, 0];
        let waiting: FairRow[] = [];
        const dispatched: (FairRow & { dispatched_ms: number })[] = [];
        trace.forEach(({ arrivals, taken }, dispatched_ms) => {
          waiting = waiting.concat(arrivals.map(({ customer, frames }) => row(customer, ++clock, frames)));
          const going = order(state, waiting).slice(0, taken);
          state = served(state, going);
          waiting = waiting.filter((each) => !going.includes(each));
          // As the database gives them back: by time, and those of one moment by age.
          const kept = going.toSorted((a, b) => a.queued_ms - b.queued_ms);
          dispatched.push(...kept.map((each) => ({ ...each, dispatched_ms })));
        });
        expect(replayed(dispatched)).toEqual(state);
      }),
    );
  });

  test("leaders that last for one rollout each are fair all the same, because the next one looks back", () => {
    expect(advantage(1)).toBeGreaterThan(0.8);
    expect(Math.abs(advantage(100))).toBeLessThan(0.02);
  });
});
