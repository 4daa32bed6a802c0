import { setTimeout as delay } from "node:timers/promises";

import { expect, test } from "vitest";

import { startLoop } from "#platform/loop.ts";

import { eventually } from "../queue/test-queue.ts";
import { silentLog } from "../support/postgres.ts";

const NEVER_MS = 3_600_000;

test("runs at once, then only when it is called or its time has come", async () => {
  let runs = 0;
  const loop = startLoop({ name: "test", everyMs: NEVER_MS, log: silentLog, run: async () => void (runs += 1) });
  await eventually(async () => runs === 1);
  loop.wake();
  await eventually(async () => runs === 2);
  await loop.stop();

  const timed = startLoop({ name: "test", everyMs: 1, log: silentLog, run: async () => void (runs += 1) });
  await eventually(async () => runs > 4);
  await timed.stop();
  const stoppedAt = runs;
  await delay(20);
  expect(runs).toBe(stoppedAt);
});

test("calls during a run are one more run, and runs never overlap", async () => {
  const gate = Promise.withResolvers<void>();
  let runs = 0;
  let inside = 0;
  const run = async (): Promise<void> => {
    runs += 1;
    inside += 1;
    expect(inside).toBe(1);
    await gate.promise;
    inside -= 1;
  };
  const loop = startLoop({ name: "test", everyMs: NEVER_MS, log: silentLog, run });
  loop.wake();
  loop.wake();
  loop.wake();
  gate.resolve();
  await eventually(async () => runs === 2);
  await delay(20);
  expect(runs).toBe(2);
  await loop.stop();
});

test("goes on after a failure, and calls do not make it fail faster", async () => {
  let runs = 0;
  const run = async (): Promise<void> => {
    runs += 1;
    throw new Error("the database is away");
  };
  const slow = startLoop({ name: "test", everyMs: NEVER_MS, log: silentLog, run });
  await eventually(async () => runs === 1);
  slow.wake();
  await delay(20);
  expect(runs).toBe(1);
  await slow.stop();

  const quick = startLoop({ name: "test", everyMs: 1, log: silentLog, run });
  await eventually(async () => runs > 3);
  await quick.stop();
});

test("stopping waits for the run in hand and tells it", async () => {
  const started = Promise.withResolvers<void>();
  let told = false;
  const run = async (signal: AbortSignal): Promise<void> => {
    started.resolve();
    await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
    told = true;
  };
  const loop = startLoop({ name: "test", everyMs: NEVER_MS, log: silentLog, run });
  await started.promise;
  await loop.stop();
  expect(told).toBe(true);
  await loop.stop();
});
