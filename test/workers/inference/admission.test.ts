import { expect, test } from "vitest";

import { createAdmission, type Verdict } from "#workers/inference/admission.ts";
import { createSlots } from "#platform/slots.ts";

const job = (samples: number, alone = false) => ({ samples, alone });

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
    enter: (name: string, candidate: ReturnType<typeof job>): void => {
      void admission.enter(candidate).then((verdict) => (verdicts[name] = verdict));
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
