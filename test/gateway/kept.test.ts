/** Answers that are made once for all who ask. */
import { expect, test } from "vitest";

import { keptFor } from "#gateway/kept.ts";

/** Loads take as long as the test says; their results are numbered. */
function setUp(keptMs: number, perCost?: number) {
  let nowMs = 1_000_000;
  let loads = 0;
  let takesMs = 0;
  let fails = false;
  const ask = keptFor(
    keptMs,
    { now: () => nowMs },
    async () => {
      loads += 1;
      await Promise.resolve();
      nowMs += takesMs;
      if (fails) throw new Error("away");
      return loads;
    },
    perCost,
  );
  return {
    ask,
    pass: (ms: number) => (nowMs += ms),
    take: (ms: number) => (takesMs = ms),
    fail: (yes: boolean) => (fails = yes),
  };
}

test("all who ask at once, and within the time that it is kept, get one answer", async () => {
  const { ask, pass } = setUp(1_000);
  expect(await Promise.all([ask(), ask(), ask()])).toEqual([1, 1, 1]);
  pass(999);
  expect(await ask()).toBe(1);
  pass(1);
  expect(await ask()).toBe(2);
});

test("what takes long is kept for twenty times as long", async () => {
  const { ask, pass, take } = setUp(1_000);
  take(500);
  expect(await ask()).toBe(1);
  pass(9_999);
  expect(await ask()).toBe(1);
  pass(1);
  expect(await ask()).toBe(2);
});

test("what is made of kept answers is as new as they are", async () => {
  const { ask, pass, take } = setUp(1_000, 0);
  take(500);
  expect(await ask()).toBe(1);
  pass(499);
  expect(await ask()).toBe(1);
  pass(1);
  expect(await ask()).toBe(2);
});

test("a clock that is set back does not keep an old answer", async () => {
  const { ask, pass } = setUp(1_000);
  expect(await ask()).toBe(1);
  pass(-3_600_000);
  expect(await ask()).toBe(2);
});

test("a failure is told to all who wait for it, and kept for nobody", async () => {
  const { ask, fail } = setUp(1_000);
  fail(true);
  const answers = await Promise.allSettled([ask(), ask()]);
  expect(answers.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
  fail(false);
  expect(await ask()).toBe(2);
});
