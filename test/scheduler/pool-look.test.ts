/** What follows from a look: the pace, seconds of workers, arrivals, the row. The policy has tests of its own. */
import { describe, expect, test } from "vitest";

import type { PoolWorkers } from "#scheduler/scaling/fleet/fleet.ts";
import {
  look,
  type Looked,
  newMemory,
  type PoolMemory,
  type PoolTraits,
  type Seen,
} from "#scheduler/scaling/pool-look.ts";
import { NOT_MEASURED, secondsPerFrame, secondsPerSample, withMeasured } from "#scheduler/scaling/work-pace.ts";

const TRAITS: PoolTraits = {
  model: "m",
  fleet: "local",
  samples_per_worker: 4,
  cold_start_s: 70,
  limits: { minimum: 0, maximum: 8, scaledown_s: 60 },
};
const NOTHING = { rollouts: 0, samples: 0, frames: 0 };
const NOBODY: PoolWorkers = { ready: [], starting: [], draining: 0, crash_loop: null, starts_s: [] };
const QUIET: Seen = {
  workers: NOBODY,
  jobs: { waiting: 0, active: 0 },
  work: { queued: NOTHING, dispatched: NOTHING, succeeded: NOTHING, ended_frames: 0, until: new Date(0) },
  always_warm_workers: null,
};
const START = 1_000_000_000;

const worker = (name: string, jobs: number, busy_ms: number | null = null) => ({
  name,
  jobs,
  idle_since_ms: START,
  busy_ms,
});
/** So many rollouts of 48 frames. */
const of = (rollouts: number) => ({ rollouts, samples: rollouts, frames: rollouts * 48 });

interface At {
  readonly s: number;
  readonly seen: Partial<Omit<Seen, "work">> & { readonly work?: Partial<Seen["work"]> };
}

function looks(first: PoolMemory, ...all: readonly At[]): Looked[] {
  let memory = first;
  return all.map(({ s, seen }) => {
    const looked = look(memory, { ...QUIET, ...seen, work: { ...QUIET.work, ...seen.work } }, START + s * 1000, TRAITS);
    ({ memory } = looked);
    return looked;
  });
}

const started = (...starts_s: number[]): At => ({ s: 0, seen: { workers: { ...NOBODY, starts_s } } });
const keeping = (always_warm_workers: number) =>
  looks(newMemory(null), { s: 0, seen: { always_warm_workers } })[0]?.pool;

const measured = (busy_s: number, samples: number) => ({ busy_s, samples, frames: samples * 48 });

describe("how fast workers are", () => {
  test("is what was expected until something came out", () => {
    expect(secondsPerFrame(NOT_MEASURED, 0.5)).toBe(0.5);
    expect(secondsPerFrame(withMeasured(NOT_MEASURED, measured(3, 0), false), 0.5)).toBe(0.5);
    expect(secondsPerSample(NOT_MEASURED)).toBeNull();
  });

  test("is seconds with a job over what came out meanwhile", () => {
    const pace = withMeasured(withMeasured(NOT_MEASURED, measured(3, 0), false), measured(1, 2), false);
    // The three seconds of before have faded by two samples.
    expect(secondsPerSample(pace)).toBeCloseTo((3 * 2 ** (-2 / 64) + 1) / 2, 9);
    expect(secondsPerFrame(pace, 9)).toBeCloseTo((3 * 2 ** (-2 / 64) + 1) / 96, 9);
  });

  test("is that of full workers as soon as there is one, however long they were half empty", () => {
    let pace = NOT_MEASURED;
    for (let n = 0; n < 200; n += 1) pace = withMeasured(pace, measured(4, 1), false);
    expect(secondsPerSample(pace)).toBeCloseTo(4);
    for (let n = 0; n < 5; n += 1) pace = withMeasured(pace, measured(4, 4), true);
    expect(secondsPerSample(pace)).toBeCloseTo(1);
    for (let n = 0; n < 200; n += 1) pace = withMeasured(pace, measured(4, 1), false);
    expect(secondsPerSample(pace)).toBeCloseTo(1);
  });

  test("follows a change within some hundred samples", () => {
    let pace = NOT_MEASURED;
    for (let n = 0; n < 100; n += 1) pace = withMeasured(pace, measured(4, 4), true);
    for (let n = 0; n < 100; n += 1) pace = withMeasured(pace, measured(8, 4), true);
    expect(secondsPerSample(pace)).toBeGreaterThan(1.9);
  });
});

describe("a look", () => {
  test("counts seconds of workers by what they did since the look before", () => {
    const workers: PoolWorkers = {
      ready: [worker("a", 2), worker("b", 0)],
      starting: [{ name: "c", since_ms: START }],
      draining: 1,
      crash_loop: null,
      starts_s: [3, 4],
    };
    const [first, second, late] = looks(
      newMemory(null),
      { s: 0, seen: { workers } },
      { s: 2, seen: { workers: { ...workers, starts_s: [] } } },
      { s: 300, seen: {} },
    );
    expect(first?.seconds).toEqual({ starting_s: 0, ready_s: 0, busy_s: 0, draining_s: 0, cold_starts: 2 });
    expect(second?.seconds).toEqual({ starting_s: 2, ready_s: 4, busy_s: 2, draining_s: 2, cold_starts: 0 });
    // Five minutes in which nobody looked are nobody's seconds.
    expect(late?.seconds).toMatchObject({ ready_s: 0, starting_s: 0 });
  });

  test("learns nothing of the pace from what came out while nobody looked", () => {
    const workers: PoolWorkers = { ...NOBODY, ready: [worker("a", 1)] };
    const paces = looks(
      newMemory({ cold_start_s: 70, seconds_per_sample: 4 }),
      { s: 0, seen: { workers } },
      // The database was away for two minutes; the next look finds all that ended meanwhile.
      { s: 120, seen: { workers, work: { succeeded: of(30) } } },
      { s: 124, seen: { workers, work: { succeeded: of(1) } } },
    ).map(({ pool }) => pool.seconds_per_sample);
    expect(paces).toEqual([4, 4, expect.closeTo(4, 6)]);
  });

  test("counts a job that came and went between two looks, by the worker's own word", () => {
    const seen = (...ready: ReturnType<typeof worker>[]) => ({ workers: { ...NOBODY, ready } });
    const busy = looks(
      newMemory(null),
      { s: 0, seen: seen(worker("a", 0, 5_000)) },
      { s: 1, seen: seen(worker("a", 0, 5_600), worker("b", 1, 9_000)) },
      { s: 2, seen: seen(worker("a", 1, 5_600), worker("b", 1, 9_400)) },
      // Another process by that name, and one that is gone.
      { s: 3, seen: seen(worker("a", 0, 200)) },
    ).map(({ seconds }) => seconds.busy_s);
    expect(busy.map((s) => Math.round(s * 10) / 10)).toEqual([0, 1, 0.4, 0.2]);
  });

  test("weighs work by its frames, and a job by those of what is dispatched", () => {
    const [{ pool }] = looks(newMemory({ cold_start_s: 70, seconds_per_sample: 4.8 }), {
      s: 0,
      seen: {
        jobs: { waiting: 2, active: 1 },
        work: { queued: { rollouts: 1, samples: 8, frames: 480 }, dispatched: { rollouts: 4, samples: 8, frames: 96 } },
      },
    }) as [Looked];
    // 0.1 s a frame: 480 in the backlog, 2 of 4 jobs with 24 frames each in the queue.
    expect(pool).toMatchObject({ waiting_rollouts: 3, waiting_samples: 12, active_rollouts: 1, active_samples: 2 });
    expect(pool.waiting_work_s).toBeCloseTo(52.8);
    expect(pool.seconds_per_sample).toBeCloseTo(4.8);
    expect(pool.reason.kind).toBe("from_zero");
    expect(pool.desired).toBe(1);
  });

  test("has a worker for a job that is active in the queue though its rollout has ended", () => {
    const [{ pool }] = looks(newMemory(null), { s: 0, seen: { jobs: { waiting: 0, active: 1 } } }) as [Looked];
    expect(pool).toMatchObject({ desired: 1, reason: { kind: "orphaned_work", active_rollouts: 1 } });
  });

  test("learns cold starts, and a new leader begins with what the one before knew", () => {
    const [manifest, once, often] = looks(newMemory(null), started(), started(10), started(10, 10, 10));
    expect([manifest, once, often].map((looked) => looked?.pool.cold_start_s)).toEqual([70, 70, 10]);
    const [next] = looks(newMemory({ cold_start_s: 10, seconds_per_sample: null }), started());
    expect(next?.pool.cold_start_s).toBe(10);
  });

  test("knows what arrived from what is there and what ended, whether it ended well, late or not at all", () => {
    const arrived = looks(
      newMemory(null),
      { s: 0, seen: { work: { queued: of(10) } } },
      // Four are on their way, one was called off and is counted a moment late.
      { s: 1, seen: { work: { queued: of(5), dispatched: of(4) } } },
      { s: 2, seen: { work: { queued: of(5), dispatched: of(4), ended_frames: 48 } } },
      { s: 3, seen: { work: { queued: of(8), ended_frames: 4 * 48 } } },
    ).map(({ memory }) => memory.arrived_frames / 48);
    expect(arrived).toEqual([10, 10, 10, 13]);
  });

  test("keeps as many workers as an operator says, and no more than the maximum", () => {
    expect(keeping(2)).toMatchObject({
      desired: 2,
      always_warm_workers: 2,
      reason: { kind: "always_warm", workers: 2 },
    });
    expect(keeping(99)).toMatchObject({ desired: 8 });
  });
});
