import * as fc from "fast-check";
import { describe, expect, test } from "vitest";

import type { Outcome, RolloutResult } from "#contract/jobs.ts";
import type { JobState } from "#queue/job-queue.ts";
import { type Action, DEADLINE_SLACK_MS, decide, type Facts, lookAgainAt } from "#scheduler/sweep/policy.ts";

const DEADLINE = 1_000_000;
const IN_TIME = DEADLINE - 1;
/** The worker may still be reporting that it gave up. */
const JUST_PAST = DEADLINE + DEADLINE_SLACK_MS - 1;
const LONG_PAST = DEADLINE + DEADLINE_SLACK_MS;

const result: RolloutResult = {
  video_keys: ["rollouts/r/1/rollout_000.mp4"],
  frames: 49,
  timings: { engine_wall_ms: 1, fetch_ms: 1, encode_ms: 1, total_ms: 3 },
};
const delivered: Outcome = { kind: "succeeded", result };
const cancelled: Outcome = { kind: "cancelled", frames_delivered: 0 };

const facts = (overrides: Partial<Facts>): Facts => ({
  now_ms: IN_TIME,
  deadline_ms: DEADLINE,
  start_by_ms: null,
  predict: null,
  settlement: null,
  result: null,
  ...overrides,
});
const said = (action: Action): string =>
  action.kind === "settle"
    ? [action.outcome.kind, "code" in action.outcome && action.outcome.code].filter(Boolean).join(" ")
    : action.kind;

describe("a dispatched rollout that is not settled", () => {
  test.each<[string, Partial<Facts>, string]>([
    ["its job waits: so do we", { predict: "waiting" }, "wait"],
    ["its job runs: we wait", { predict: "active" }, "wait"],
    [
      "its job runs past the deadline: the worker gets time to give up by itself",
      { predict: "active", now_ms: JUST_PAST },
      "wait",
    ],
    ["its job runs long past the deadline: it expires", { predict: "active", now_ms: LONG_PAST }, "expired"],
    ["its job waits long past the deadline: it expires", { predict: "waiting", now_ms: LONG_PAST }, "expired"],
    ["its job was never added: it is added again", {}, "add_again"],
    ["no worker has begun it, and it is not too late", { predict: "waiting", start_by_ms: IN_TIME + 1 }, "wait"],
    ["no worker has begun it when one must have: it expires", { predict: "waiting", start_by_ms: IN_TIME }, "expired"],
    ["its job is gone, and it is too late to begin: it expires", { start_by_ms: IN_TIME }, "expired"],
    ["it began in time: it goes on to its deadline", { predict: "active", start_by_ms: IN_TIME - 1_000 }, "wait"],
    [
      "its job is done and its settlement under way when it is too late to begin: we wait",
      { settlement: { state: "waiting", outcome: delivered }, start_by_ms: IN_TIME },
      "wait",
    ],
    ["its job is gone and its deadline too: it is lost", { now_ms: LONG_PAST }, "failed lost"],
    ["its job failed: it failed", { predict: "failed" }, "failed engine_failed"],
    ["its job failed after delivering: it succeeded", { predict: "failed", result }, "succeeded"],
    ["its settlement waits for a consumer: so do we", { settlement: { state: "waiting", outcome: delivered } }, "wait"],
    ["its settlement failed: we settle it", { settlement: { state: "failed", outcome: delivered } }, "succeeded"],
    [
      "its settlement failed and says cancelled: that is what it is",
      { settlement: { state: "failed", outcome: cancelled } },
      "cancelled",
    ],
    [
      "nobody consumes settlements: we settle it when its time is over",
      { settlement: { state: "waiting", outcome: delivered }, now_ms: LONG_PAST },
      "succeeded",
    ],
    ["its settlement was lost, its result is there: it succeeded", { result }, "succeeded"],
    [
      "delivered, then lost until long past the deadline: it succeeded all the same",
      { result, now_ms: LONG_PAST },
      "succeeded",
    ],
  ])("%s", (_name, overrides, expected) => {
    expect(said(decide(facts(overrides)))).toBe(expected);
  });

  const states = fc.constantFrom<JobState | null>(null, "waiting", "active", "failed");
  const anyFacts = fc.record<Facts>({
    now_ms: fc.integer({ min: DEADLINE - 60_000, max: DEADLINE + 60_000 }),
    deadline_ms: fc.constant(DEADLINE),
    start_by_ms: fc.option(fc.integer({ min: DEADLINE - 60_000, max: DEADLINE })),
    predict: states,
    settlement: fc.option(
      fc.record({ state: fc.constantFrom<JobState>("waiting", "active", "failed"), outcome: fc.constant(delivered) }),
    ),
    result: fc.option(fc.constant(result)),
  });

  test("is never refunded when its result exists", () => {
    fc.assert(
      fc.property(anyFacts, (some) => {
        fc.pre(some.result !== null);
        const action = decide(some);
        expect(action.kind).not.toBe("add_again");
        expect(action.kind === "settle" ? action.outcome : delivered).toEqual(delivered);
      }),
    );
  });

  test("is always settled once its deadline and the slack are over", () => {
    fc.assert(
      fc.property(anyFacts, (some) => {
        fc.pre(some.now_ms >= LONG_PAST);
        expect(decide(some).kind).toBe("settle");
      }),
    );
  });

  test("is never added again while a job of it exists", () => {
    fc.assert(
      fc.property(anyFacts, (some) => {
        fc.pre(some.predict !== null || some.settlement !== null);
        expect(decide(some).kind).not.toBe("add_again");
      }),
    );
  });

  test("is called off at the worker whenever it is settled over a live job", () => {
    fc.assert(
      fc.property(anyFacts, (some) => {
        const action = decide(some);
        if (action.kind !== "settle") return;
        expect(action.cancel).toBe(some.predict === "waiting" || some.predict === "active");
      }),
    );
  });
});

describe("the next look", () => {
  test("comes soon while a rollout is young, later when it is old, and punctually at the decisive moment", () => {
    expect(lookAgainAt(5_000, 0, DEADLINE, null)).toBe(10_000);
    expect(lookAgainAt(40_000, 0, DEADLINE, null)).toBe(50_000);
    expect(lookAgainAt(900_000, 0, DEADLINE, null)).toBe(960_000);
    expect(lookAgainAt(DEADLINE, 0, DEADLINE, null)).toBe(DEADLINE + DEADLINE_SLACK_MS);
    expect(lookAgainAt(LONG_PAST, 0, DEADLINE, null)).toBeGreaterThan(LONG_PAST);
    expect(lookAgainAt(40_000, 0, DEADLINE, 44_000)).toBe(44_000);
    expect(lookAgainAt(44_000, 0, DEADLINE, 44_000)).toBe(55_000);
    expect(lookAgainAt(5_000, 0, DEADLINE, 44_000)).toBe(10_000);
  });

  test("is always later than now", () => {
    fc.assert(
      fc.property(fc.nat(), fc.nat(), fc.nat(), fc.option(fc.nat()), (age, dispatched, deadline, startBy) => {
        const now = dispatched + age;
        expect(lookAgainAt(now, dispatched, deadline, startBy)).toBeGreaterThan(now);
      }),
    );
  });
});
