/** What a planner's rollout takes in the engine beside a full bulk lane, by the plan alone: forwards at the reference bundle's costs. */
import { expect, test } from "vitest";

import type { Lane } from "#contract/rollout.ts";
import {
  FIRST_PLAN,
  planForward,
  type Plannable,
  type Stage,
  type TimedStage,
} from "#workers/inference/engine/plan.ts";
import { fillToOf, rowsWorthOf, type TimedForward } from "#workers/inference/engine/warm-up.ts";

/** Milliseconds of a forward of 1, 2, 4 and 8 rows of pusht-small, the best of eight, on one core of an AMD EPYC; 0.6 of ours included. */
const COSTS: Readonly<Record<TimedStage, readonly number[]>> = {
  encode: [1.6, 2.4, 3.6, 6.9],
  denoise: [2.2, 2.7, 3.8, 5.7],
  decode: [2.2, 3.7, 6.5, 16.9],
};
const SIZES = [1, 2, 4, 8] as const;
const ROWS_MAX = 8;
const BLOCKS = 12;
const STEPS = 2;
/** A planner's whole P99 may become 1.5 times as long: beside the engine there is everything else. */
const RATIO_MAX = 1.3;

interface Sample extends Plannable {
  readonly lane: Lane;
  readonly bornMs: number;
  forwards: number;
}

const FORWARDS = 1 + BLOCKS * (STEPS + 1);
const newSample = (lane: Lane, bornMs: number): Sample => ({
  lane,
  bornMs,
  forwards: 0,
  graphs: "all",
  rows: 1,
  alone: false,
  get stage(): Stage {
    if (this.forwards === 0) return "encode";
    return this.forwards % (STEPS + 1) === 0 ? "decode" : "denoise";
  },
});

const timed = (stage: TimedStage): TimedForward[] => COSTS[stage].map((ms, i) => ({ rows: SIZES[i] ?? 0, ms }));
/** On a line between the sizes that were measured. */
function costOf(stage: TimedStage, rows: number): number {
  const sizes = timed(stage);
  const above = sizes.find((one) => one.rows >= rows);
  const below = sizes.findLast((one) => one.rows <= rows);
  if (!above || !below) throw new Error(`no forward has ${rows} rows`);
  const share = above.rows === below.rows ? 0 : (rows - below.rows) / (above.rows - below.rows);
  return below.ms + (above.ms - below.ms) * share;
}

const LIMITS = {
  rowsMax: ROWS_MAX,
  rowsWorth: rowsWorthOf(timed("denoise")),
  fillTo: { encode: fillToOf(timed("encode")), decode: fillToOf(timed("decode")), denoise: fillToOf(timed("denoise")) },
};

/** The longest of many realtime rollouts that come one every `everyMs`, with `bulk` samples there all the time. */
function longest(bulk: number, everyMs: number): { readonly wallMs: number; readonly bulkDone: number } {
  let [now, next, plan, bulkDone] = [0, 0, FIRST_PLAN, 0];
  let live: Sample[] = [];
  const walls: number[] = [];
  while (walls.length < 300) {
    for (; next <= now; next += everyMs) live.push(newSample("realtime", next));
    while (live.filter(({ lane }) => lane === "bulk").length < bulk) live.push(newSample("bulk", now));
    const { forward, state } = planForward(live, LIMITS, plan);
    plan = state;
    if (forward === null) {
      now = next;
      continue;
    }
    now += costOf(forward.stage as TimedStage, forward.samples.length); // no sample here has its step in two
    for (const sample of forward.samples) sample.forwards += 1;
    for (const { lane, bornMs } of live.filter(({ forwards }) => forwards === FORWARDS)) {
      if (lane === "realtime") walls.push(now - bornMs);
      else bulkDone += 1;
    }
    live = live.filter(({ forwards }) => forwards < FORWARDS);
  }
  return { wallMs: Math.max(...walls), bulkDone };
}

// Not in step with anything that the engine does, so that they meet bulk's forwards at every moment.
test.each([233.7, 497.3, 1_009.1])("one every %f ms is hardly longer in the engine, and bulk goes on", (everyMs) => {
  const alone = longest(0, everyMs);
  const beside = longest(ROWS_MAX, everyMs);
  expect(alone.wallMs).toBeLessThan(everyMs); // they do not wait for each other
  expect(beside.wallMs / alone.wallMs).toBeLessThan(RATIO_MAX);
  expect(beside.bulkDone).toBeGreaterThan(300);
});
