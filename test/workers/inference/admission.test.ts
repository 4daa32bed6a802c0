import * as fc from "fast-check";
import { expect, test } from "vitest";

import type { Lane } from "#contract/rollout.ts";
import { createAdmission, type Verdict } from "#workers/inference/admission.ts";
import { createSlots } from "#platform/slots.ts";

const job = (samples: number, alone = false, lane: Lane = "realtime") => ({ lane, samples, alone });
const bulk = (samples: number, alone = false) => job(samples, alone, "bulk");

/** Lets everything that can settle settle. */
const settle = () => new Promise((resolve) => setImmediate(resolve));

function createHarness(samplesMax = 8) {
  const consumer: string[] = [];
  const verdicts: Record<string, Verdict> = {};
  const admission = createAdmission({
    samplesMax,
    pause: async () => void consumer.push("pause"),
    resume: async () => void consumer.push("resume"),
  });
  return {
    admission,
    consumer,
    verdicts,
    enter: (name: string, candidate: ReturnType<typeof job>, signal?: AbortSignal): void => {
      void admission.enter(candidate, signal).then((verdict) => (verdicts[name] = verdict));
    },
  };
}

test("slots are given in order, and one that is given back goes to the next", async () => {
  const slots = createSlots(2);
  const order: number[] = [];
  const giveBack = await Promise.all([slots.take(), slots.take()]);
  for (const i of [1, 2]) void slots.take().then(() => order.push(i));
  await settle();
  expect(order).toEqual([]);
  giveBack[0]();
  await settle();
  expect(order).toEqual([1]);
});

test("jobs run together as long as their samples fit, then wait in order", async () => {
  const { admission, verdicts, enter } = createHarness();
  enter("a", job(4));
  enter("b", job(4));
  enter("c", job(2));
  enter("d", job(1));
  await settle();
  expect(verdicts).toEqual({ a: "run", b: "run" });
  admission.leave(job(4));
  await settle();
  expect(verdicts).toEqual({ a: "run", b: "run", c: "run", d: "run" });
});

test("a rollout larger than the engine waits for it to be idle, and then runs", async () => {
  const { admission, verdicts, enter } = createHarness();
  enter("a", job(1));
  enter("big", job(32));
  await settle();
  expect(verdicts).toEqual({ a: "run" });
  admission.leave(job(1));
  await settle();
  expect(verdicts["big"]).toBe("run");
});

test("an alone job empties its process: waiting jobs are put back, running ones finish, none is taken", async () => {
  const { admission, consumer, verdicts, enter } = createHarness();
  enter("running", job(8));
  enter("waiting", job(1));
  enter("poison", job(1, true));
  enter("late", job(1));
  enter("other poison", job(1, true));
  await settle();
  expect(verdicts).toEqual({ running: "run", waiting: "put_back", late: "put_back", "other poison": "put_back" });
  expect(consumer).toEqual(["pause"]);

  admission.leave(job(8));
  await settle();
  expect(verdicts["poison"]).toBe("run");

  admission.leave(job(1, true));
  enter("next", job(1));
  await settle();
  expect(consumer).toEqual(["pause", "resume"]);
  expect(verdicts["next"]).toBe("run");
});

test("an alone job does not begin while others are on their way back into the queue, or have not entered yet", async () => {
  const { admission, verdicts, enter } = createHarness();
  for (let held = 0; held < 3; held += 1) admission.came();
  enter("waiting on its result", job(1));
  admission.leave(job(1)); // done, but its settlement is under way
  enter("poison", job(1, true));
  await settle();
  enter("late", job(1));
  await settle();
  expect(verdicts).toEqual({ "waiting on its result": "run", late: "put_back" });
  admission.gone();
  await settle();
  expect(verdicts["poison"]).toBeUndefined(); // the put-back is still in flight
  admission.gone();
  await settle();
  expect(verdicts["poison"]).toBe("run");
});

test("when closed, nothing begins any more and the consumer stays paused", async () => {
  const { admission, consumer, verdicts, enter } = createHarness();
  enter("running", job(8));
  enter("poison", job(1, true));
  await settle();
  admission.close();
  enter("late", job(1));
  await settle();
  expect(verdicts).toEqual({ running: "run", poison: "put_back", late: "put_back" });
  admission.leave(job(8));
  expect(consumer).toEqual(["pause"]);
});

test("a realtime job has its place while bulk fills the engine, and bulk takes no more than what is free", async () => {
  const { admission, verdicts, enter } = createHarness();
  for (let n = 0; n < 8; n++) enter(`bulk ${n}`, bulk(1));
  enter("bulk too many", bulk(1));
  enter("realtime", job(8));
  enter("realtime too many", job(1));
  await settle();
  expect(Object.keys(verdicts)).toEqual([...Array.from({ length: 8 }, (_, n) => `bulk ${n}`), "realtime"]);

  admission.leave(bulk(1));
  await settle();
  expect(verdicts["bulk too many"]).toBeUndefined(); // realtime has the place
  admission.leave(job(8));
  await settle();
  // First the lane that somebody waits for.
  expect(verdicts).toMatchObject({ "realtime too many": "run" });
  expect(verdicts["bulk too many"]).toBeUndefined();
  admission.leave(job(1));
  await settle();
  expect(verdicts["bulk too many"]).toBe("run");
});

test("a bulk job runs beside steady realtime work, even one as large as the engine, but only one then", async () => {
  const { admission, verdicts, enter } = createHarness();
  enter("realtime", job(8));
  enter("large", bulk(32));
  enter("small", bulk(1));
  await settle();
  expect(verdicts).toEqual({ realtime: "run", large: "run" });
  admission.leave(bulk(32));
  await settle();
  expect(verdicts["small"]).toBe("run");
});

test.each(["realtime", "bulk"] as const)(
  "an alone job of the %s lane waits for both, and both for it",
  async (lane) => {
    const { admission, consumer, verdicts, enter } = createHarness();
    enter("realtime", job(1));
    enter("bulk", bulk(1));
    enter("poison", job(1, true, lane));
    await settle();
    admission.leave(job(1));
    await settle();
    expect(verdicts["poison"]).toBeUndefined();
    admission.leave(bulk(1));
    await settle();
    expect(verdicts["poison"]).toBe("run");
    enter("next", job(1));
    enter("next bulk", bulk(1));
    await settle();
    expect(verdicts).toMatchObject({ next: "put_back", "next bulk": "put_back" });
    expect(consumer).toEqual(["pause"]);
    admission.leave(job(1, true, lane));
    expect(consumer).toEqual(["pause", "resume"]);
  },
);

test("whoever is called off while it waits waits no longer, and keeps nobody behind it waiting", async () => {
  const { admission, consumer, verdicts, enter } = createHarness();
  const calledOff = [new AbortController(), new AbortController(), new AbortController()] as const;
  enter("running", job(4), calledOff[2].signal);
  enter("large", job(8), calledOff[0].signal);
  enter("small", job(1));
  await settle();
  calledOff[0].abort();
  await settle();
  expect(verdicts).toEqual({ running: "run", large: "called_off", small: "run" });

  enter("poison", job(1, true), calledOff[1].signal);
  await settle();
  calledOff[1].abort();
  await settle();
  expect(verdicts["poison"]).toBe("called_off");
  expect(consumer).toEqual(["pause", "resume"]);
  enter("late", job(1), calledOff[0].signal);
  await settle();
  expect(verdicts["late"]).toBe("called_off");

  calledOff[2].abort(); // of what runs, its engine is told, not we
  enter("too large by one", job(4));
  await settle();
  expect(verdicts["too large by one"]).toBeUndefined();
  admission.leave(job(4));
  await settle();
  expect(verdicts["too large by one"]).toBe("run");
});

/** What may happen to a process: a job comes; one of those that run, wait, or go back (by number) ends, is called off, is gone. */
type Step =
  | { readonly kind: "come"; readonly lane: Lane; readonly samples: number; readonly alone: boolean }
  | { readonly kind: "end" | "call off" | "back"; readonly which: number };

const lanes = fc.constantFrom<Lane>("realtime", "bulk");
const coming = fc.record({
  kind: fc.constant("come" as const),
  lane: lanes,
  samples: fc.integer({ min: 1, max: 12 }),
  alone: fc.integer({ min: 0, max: 9 }).map((n) => n === 0),
});
const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    { arbitrary: coming, weight: 3 },
    {
      arbitrary: fc.record({ kind: fc.constantFrom("end", "call off", "back"), which: fc.nat(50) }),
      weight: 3,
    },
  ),
  { maxLength: 40 },
);

const SAMPLES_MAX = 4;

interface Held {
  readonly lane: Lane;
  readonly samples: number;
  readonly alone: boolean;
  readonly calling: AbortController;
  verdict: Verdict | "none yet";
}

function createProcess() {
  const told: string[] = [];
  const admission = createAdmission({
    samplesMax: SAMPLES_MAX,
    pause: async () => void told.push("pause"),
    resume: async () => void told.push("resume"),
  });
  let held: Held[] = [];
  const those = (...verdicts: Held["verdict"][]) => held.filter(({ verdict }) => verdicts.includes(verdict));
  const pick = (jobs: readonly Held[], which: number) => jobs[which % Math.max(1, jobs.length)];

  function gone(job: Held | undefined): void {
    if (!job) return;
    held = held.filter((other) => other !== job);
    admission.gone();
  }
  function end(job: Held | undefined): void {
    if (!job) return;
    admission.leave(job);
    gone(job);
  }
  return {
    told,
    take(step: Step): void {
      if (step.kind === "come") {
        if (told.at(-1) === "pause") return; // the consumers take none
        const job: Held = { ...step, calling: new AbortController(), verdict: "none yet" };
        held.push(job);
        admission.came();
        void admission.enter(job, job.calling.signal).then((verdict) => (job.verdict = verdict));
      } else if (step.kind === "end") end(pick(those("run"), step.which));
      else if (step.kind === "call off") pick(those("none yet"), step.which)?.calling.abort();
      else gone(pick(those("put_back", "called_off"), step.which));
    },
    check(): void {
      const samplesOf = (jobs: readonly Held[]) =>
        jobs.reduce((sum, { samples, alone }) => sum + (alone ? SAMPLES_MAX : Math.min(samples, SAMPLES_MAX)), 0);
      const running = { realtime: [] as Held[], bulk: [] as Held[] };
      for (const job of those("run")) running[job.lane].push(job);
      const [realtime, bulkSamples] = [samplesOf(running.realtime), samplesOf(running.bulk)];
      expect(realtime).toBeLessThanOrEqual(SAMPLES_MAX);
      expect(bulkSamples).toBeLessThanOrEqual(SAMPLES_MAX);
      if (those("run").some(({ alone }) => alone)) expect(held).toHaveLength(1);
      // Nobody waits without a reason; realtime's is never bulk.
      const waiting = those("none yet");
      const next = (lane: Lane) => waiting.find((job) => job.lane === lane);
      const room = { realtime: SAMPLES_MAX - realtime, bulk: SAMPLES_MAX - realtime - bulkSamples };
      if (waiting.some(({ alone }) => alone)) expect(held.length).toBeGreaterThan(1);
      else {
        const [first, firstBulk] = [next("realtime"), next("bulk")];
        if (first) expect(Math.min(first.samples, SAMPLES_MAX)).toBeGreaterThan(room.realtime);
        if (firstBulk) expect(running.bulk).not.toEqual([]);
        if (firstBulk) expect(Math.min(firstBulk.samples, SAMPLES_MAX)).toBeGreaterThan(room.bulk);
      }
    },
    /** Whatever runs ends, whatever goes back is back, until nobody is left. */
    async drain(): Promise<void> {
      for (let round = 0; held.length > 0; round++) {
        expect(round).toBeLessThan(100);
        for (const job of those("put_back", "called_off")) gone(job);
        for (const job of those("run")) end(job);
        await settle();
      }
    },
  };
}

test("whatever comes and goes: no lane over its budget, realtime never waits for bulk, alone is alone, nobody for ever", async () => {
  await fc.assert(
    fc.asyncProperty(steps, async (history) => {
      const process = createProcess();
      for (const step of history) {
        process.take(step);
        await settle();
        process.check();
      }
      await process.drain();
      expect(process.told.filter((what) => what === "pause")).toHaveLength(process.told.length / 2);
      expect(process.told.at(-1) ?? "resume").toBe("resume");
    }),
    { numRuns: 300 },
  );
});
