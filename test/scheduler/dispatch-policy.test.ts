import * as fc from "fast-check";
import { describe, expect, test } from "vitest";

import { IDLE, queuesOf } from "#scheduler/dispatch/fair.ts";
import { chooseNext, estimateHeld, roomFor, type Waiting } from "#scheduler/dispatch/policy.ts";

/** One customer's, oldest first. */
const backlogOf = (ks: readonly number[]): Waiting[] =>
  ks.map((k, n) => ({ id: `r${n}`, customer_id: "a", queued_ms: n, k, frames: k * 48, weight: 1 }));
const chosenOf = (ks: readonly number[], held: number, in_flight: number): number[] =>
  chooseNext(IDLE, queuesOf(backlogOf(ks)), roomFor({ held, in_flight })).chosen.map(({ k }) => k);

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
    expect(chosenOf(backlog, held, in_flight)).toHaveLength(taken);
  });

  test("never lets a small rollout overtake a large one", () => {
    expect(chosenOf([1, 32, 1], 8, 10)).toEqual([1, 32]);
  });

  test("says where there is room for what was not read, and only there", () => {
    const three = backlogOf([1, 1, 1]);
    expect(chooseNext(IDLE, queuesOf(three, 3), 4)).toEqual({ chosen: three, more: true });
    expect(chooseNext(IDLE, queuesOf(three, 4), 4)).toEqual({ chosen: three, more: false });
    expect(chooseNext(IDLE, queuesOf(three, 3), 3)).toEqual({ chosen: three, more: false });
    // Whose next one would go, nobody knows: the other customer's must not.
    const other = { id: "x", customer_id: "b", queued_ms: 9, k: 1, frames: 480, weight: 1 };
    const later = { ...other, id: "y", queued_ms: 10 };
    const cut = chooseNext(IDLE, queuesOf([...three, other, later], 3), 9);
    expect(cut.chosen.map(({ id }) => id)).toEqual(["r0", "x", "r1", "r2"]);
    expect(cut.more).toBe(true);
  });

  const backlogs = fc.array(fc.integer({ min: 1, max: 32 }));

  test("one customer's is always the front of the backlog, and overshoots by less than its last rollout", () => {
    fc.assert(
      fc.property(backlogs, fc.nat(512), fc.nat(512), (backlog, held, in_flight) => {
        const chosen = chosenOf(backlog, held, in_flight);
        expect(chosen).toEqual(backlog.slice(0, chosen.length));
        const beforeLast = in_flight + chosen.slice(0, -1).reduce((sum, k) => sum + k, 0);
        expect(chosen.length === 0 || beforeLast < Math.max(1, held * 1.5)).toBe(true);
      }),
    );
  });

  test("room is never left while anything waits, whosever it is", () => {
    const rows = fc.array(fc.tuple(fc.constantFrom("a", "b", "c"), fc.integer({ min: 1, max: 32 })));
    fc.assert(
      fc.property(rows, fc.nat(512), fc.nat(512), (backlog, held, in_flight) => {
        const rows = backlogOf(backlog.map(([, k]) => k));
        const waiting = rows.map((row, n) => Object.assign(row, { customer_id: backlog[n]?.[0] ?? "" }));
        const room = roomFor({ held, in_flight });
        const { chosen } = chooseNext(IDLE, queuesOf(waiting), room);
        const samples = chosen.reduce((sum, { k }) => sum + k, 0);
        expect(samples >= room || chosen.length === waiting.length).toBe(true);
        expect(in_flight > 0 || waiting.length === 0 || chosen.length > 0).toBe(true);
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
