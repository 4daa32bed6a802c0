import { expect, test } from "vitest";

import { QUEUE_POSITION_MAX } from "#contract/limits.ts";
import type { InFlight } from "#rollouts/dispatch.ts";
import { expectedStartS, type PlaceInLine, type PoolAtWork, type PoolOutlook } from "#rollouts/expected-start.ts";

/** Two warm workers that hold four samples each of a lane, and need half a second of each sample. */
const WARM: PoolAtWork = {
  ready: 2,
  starting: 0,
  desired: 2,
  maximum: 4,
  waiting_rollouts: 0,
  waiting_samples: 0,
  samples_per_worker: 4,
  seconds_per_sample: 0.5,
  crash_loop: null,
};
const COLD: PoolAtWork = { ...WARM, ready: 0, desired: 0 };

/** Stands for null beside numbers. */
const UNKNOWN = -1;

interface Case {
  readonly place?: Partial<PlaceInLine>;
  readonly pool?: PoolAtWork | null;
  readonly per_second?: number;
  /** Samples of either lane that are dispatched. */
  readonly realtime?: number;
  readonly bulk?: number;
  readonly cold_start_s?: number;
}

const inFlight = (samples: number): InFlight => ({ rollouts: samples, samples });

function startOf({
  place,
  pool = WARM,
  per_second = 0,
  realtime = 0,
  bulk = 0,
  cold_start_s = 0,
}: Case): number | null {
  const outlook: PoolOutlook = {
    pool,
    per_second,
    in_flight: { realtime: inFlight(realtime), bulk: inFlight(bulk) },
    cold_start_s,
  };
  return expectedStartS({ position: 1, lane: "realtime", ...place }, outlook);
}

test.for<[string, Case, number | null]>([
  ["an idle pool begins at once", {}, 0],
  ["so does one with a place left", { realtime: 7 }, 0],
  ["a full one when the first is done", { realtime: 8 }, 0.25],
  ["the tenth in line behind a full one", { place: { position: 10 }, realtime: 12 }, (12 + 9 - 8 + 1) * 0.25],
  [
    "candidates count one by one",
    { place: { position: 3 }, realtime: 8, pool: { ...WARM, waiting_rollouts: 5, waiting_samples: 40 } },
    (8 + 16 - 8 + 1) * 0.25,
  ],
  ["what is dispatched of the other lane takes no place", { bulk: 12 }, 0],
  ["nobody is there: a cold start", { pool: COLD, cold_start_s: 70 }, 70],
  [
    "and then in its turn, with the workers that are on their way",
    { place: { position: 17 }, pool: { ...COLD, starting: 2, desired: 2 }, cold_start_s: 70 },
    70 + 9 * 0.25,
  ],
  [
    "not measured yet: by what came out of late",
    { place: { position: 5 }, realtime: 8, pool: { ...WARM, seconds_per_sample: null }, per_second: 2 },
    2.5,
  ],
  ["not measured, and nothing came out", { realtime: 8, pool: { ...WARM, seconds_per_sample: null } }, null],
  [
    "nobody looks after the pool: when all before it are done",
    { place: { position: 5 }, pool: null, realtime: 2, per_second: 2 },
    3,
  ],
  ["or at once, where there are none", { pool: null }, 0],
  ["or nobody can tell", { place: { position: 2 }, pool: null }, null],
  ["behind the last place that is counted", { place: { position: QUEUE_POSITION_MAX } }, null],
  ["workers that keep dying", { pool: { ...WARM, crash_loop: "exit 134" } }, null],
  ["no worker may be there", { pool: { ...COLD, maximum: 0 }, cold_start_s: 70 }, null],
])("%s", ([, given, expected]) => {
  expect(startOf(given) ?? UNKNOWN).toBeCloseTo(expected ?? UNKNOWN, 9);
});

test("is never sooner for one further back, nor with fewer workers, nor with more before it", () => {
  for (const realtime of [0, 3, 8, 20]) {
    let before = 0;
    for (let position = 1; position < QUEUE_POSITION_MAX; position = Math.ceil(position * 1.5)) {
      const seconds = startOf({ place: { position }, realtime }) ?? Number.NaN;
      expect(seconds).toBeGreaterThanOrEqual(before);
      expect(startOf({ place: { position }, realtime: realtime + 1 })).toBeGreaterThanOrEqual(seconds);
      expect(startOf({ place: { position }, realtime, pool: { ...WARM, ready: 1 } })).toBeGreaterThanOrEqual(seconds);
      before = seconds;
    }
  }
});
