import * as fc from "fast-check";
import { describe, expect, test } from "vitest";

import { chooseNext, estimateHeld, type Waiting } from "#scheduler/dispatch/policy.ts";

const NOW = 1_000_000;
const row = (k: number, deadline_ms = NOW + 60_000): Waiting => ({ k, deadline_ms });
const ks = (rows: readonly Waiting[]): number[] => rows.map(({ k }) => k);

describe("what is dispatched next", () => {
  test.each([
    ["fills to one and a half times what the workers hold", Array<number>(20).fill(1), 8, 0, 12],
    ["counts what is in flight", Array<number>(20).fill(1), 8, 10, 2],
    ["takes nothing while the queue is full", [1, 1], 8, 12, 0],
    ["takes nothing from an empty backlog", [], 8, 0, 0],
    ["takes one rollout that is larger than all workers when nothing runs", [32, 1], 8, 0, 1],
    ["counts a batch of eight as eight", [8, 8, 8], 8, 0, 2],
    ["takes one even when no worker lives, so that there is something to start one for", [1, 1], 0, 0, 1],
  ])("%s", (_name, backlog, held, in_flight, taken) => {
    expect(
      chooseNext(
        backlog.map((k) => row(k)),
        { held, in_flight },
        NOW,
      ),
    ).toHaveLength(taken);
  });

  test("never lets a small rollout overtake a large one", () => {
    expect(ks(chooseNext([row(1), row(32), row(1)], { held: 8, in_flight: 10 }, NOW))).toEqual([1, 32]);
  });

  test("leaves out those whose deadline has passed: the sweep ends them", () => {
    expect(ks(chooseNext([row(3, NOW), row(2)], { held: 8, in_flight: 0 }, NOW))).toEqual([2]);
  });

  const backlogs = fc.array(fc.record({ k: fc.integer({ min: 1, max: 32 }), deadline_ms: fc.constant(NOW + 1) }));
  const capacities = fc.record({ held: fc.nat(512), in_flight: fc.nat(512) });

  test("is always the front of the backlog, and overshoots by less than its last rollout", () => {
    fc.assert(
      fc.property(backlogs, capacities, (backlog, capacity) => {
        const chosen = chooseNext(backlog, capacity, NOW);
        expect(chosen).toEqual(backlog.slice(0, chosen.length));
        const beforeLast = capacity.in_flight + chosen.slice(0, -1).reduce((sum, { k }) => sum + k, 0);
        expect(chosen.length === 0 || beforeLast < Math.max(1, capacity.held * 1.5)).toBe(true);
      }),
    );
  });

  test("an idle system with a backlog always dispatches", () => {
    fc.assert(
      fc.property(backlogs, fc.nat(512), (backlog, held) => {
        const chosen = chooseNext(backlog, { held, in_flight: 0 }, NOW);
        expect(chosen.length > 0).toBe(backlog.length > 0);
      }),
    );
  });
});

describe("what workers of another deployment are assumed to hold", () => {
  test.each([
    ["nothing dispatched: one worker", { samples: 0, rollouts: 0 }, 0, 8],
    ["all of it still waits: nobody is known to be busy", { samples: 12, rollouts: 12 }, 12, 8],
    ["all of it was taken up: two busy workers, and one more", { samples: 12, rollouts: 12 }, 0, 24],
    ["half of it was taken up", { samples: 16, rollouts: 16 }, 8, 16],
  ])("%s", (_name, dispatched, waiting, held) => {
    expect(estimateHeld(dispatched, waiting, 8)).toBe(held);
  });
});
