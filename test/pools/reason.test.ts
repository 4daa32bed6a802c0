import { expect, test } from "vitest";

import { type Reason, reasonText } from "#pools/reason.ts";

const weighed = {
  waiting_rollouts: 40,
  work_s: 900,
  workers: 2,
  sustained_workers: 0,
  wall_s: 450,
  break_even_s: 140,
};

const SENTENCES: readonly (readonly [Reason, string])[] = [
  [{ kind: "no_work" }, "no work, so no worker"],
  [
    { kind: "from_zero", start: 1, ...weighed, waiting_rollouts: 1, work_s: 4, workers: 0, wall_s: null },
    "1 rollout waits, 4 s of work in all, and no worker is there: starting 1",
  ],
  [{ kind: "orphaned_work", active_rollouts: 1 }, "1 rollout of workers that are gone: one starts to take over"],
  [
    { kind: "scale_out", start: 3, ...weighed },
    "40 rollouts wait, 15 min of work in all: 2 workers would be done in 450 s, longer than the 140 s from which on another start pays: starting 3",
  ],
  [
    { kind: "scale_out", start: 3, ...weighed, wall_s: null },
    "40 rollouts wait, 15 min of work in all: 2 workers would never be done with what keeps coming: starting 3",
  ],
  [
    { kind: "wait", ...weighed, wall_s: 100 },
    "40 rollouts wait, 15 min of work in all: 2 workers would be done in 100 s, and another start pays from 140 s on",
  ],
  [
    { kind: "wait", ...weighed, wall_s: null, workers: 1 },
    "40 rollouts wait, 15 min of work in all: 1 worker would never be done with what keeps coming, and no further start would pay for itself now",
  ],
  [{ kind: "busy", workers: 1 }, "nothing waits, and the worker is needed"],
  [{ kind: "busy", workers: 4 }, "nothing waits, and all 4 workers are needed"],
  [
    { kind: "scaledown_window", peak: 2, unneeded_s: 20, window_s: 60 },
    "2 workers needed 20 s ago: kept until that is 60 s ago",
  ],
  [{ kind: "scale_in", workers: 4, peak: 1, window_s: 60 }, "at most 1 worker needed in the last 60 s: 3 of 4 may go"],
  [
    { kind: "minimum", workers: 2, needed: 0 },
    "the minimum of 2 (WORKERS_MIN, and 1 when serve has just started) holds; the work alone needs 0",
  ],
  [{ kind: "always_warm", workers: 1, needed: 0 }, "always warm: 1 worker kept; the work alone needs 0"],
  [{ kind: "unmanaged" }, "somebody else runs its workers (FLEET=none); their numbers are told from what they do"],
  [{ kind: "maximum", maximum: 8, needed: 11 }, "the maximum of 8 (WORKERS) holds; the work alone would need 11"],
];

test.each(SENTENCES)("%o in words", (reason, text) => {
  expect(reasonText(reason)).toBe(text);
});

test("a reason of another version's scheduler is shown by its name", () => {
  expect(reasonText({ kind: "moon_phase" } as unknown as Reason)).toBe("moon phase");
});
