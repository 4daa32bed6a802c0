import { randomBytes } from "node:crypto";

import { afterAll, beforeAll, expect, test } from "vitest";

import { newRolloutId, type RolloutId } from "#contract/ids.ts";
import { type ProgressBoard, startProgressBoard } from "#gateway/progress-board.ts";
import { createSignals, type Signals } from "#queue/signals.ts";
import { silentLog } from "#test/support/postgres.ts";

/** Signals that arrive at once, in this process. */
function direct(): Signals {
  return createSignals(
    (receive) => ({
      send: async (_kind, message) => receive(message),
      listen: async () => undefined,
      close: async () => undefined,
    }),
    silentLog,
  );
}

let signals: Signals;
let board: ProgressBoard;
let nowMs = 1_000_000;
const clock = { now: () => nowMs };
beforeAll(async () => {
  signals = direct();
  board = await startProgressBoard(signals, clock, 3);
});
afterAll(() => board.stop());

const id = (): RolloutId => newRolloutId(randomBytes);
const says = (rollout_id: RolloutId, frames: number): Promise<void> =>
  signals.publish({ kind: "progress", rollout_id, frames });

test("knows what was said last, and nothing of what nobody spoke of", async () => {
  const one = id();
  expect(board.framesDone(one)).toBeNull();
  await says(one, 5);
  await says(one, 20);
  expect(board.framesDone(one)).toBe(20);
  // It begins anew on another worker.
  await says(one, 1);
  expect(board.framesDone(one)).toBe(1);
  await signals.publish({ kind: "finished", rollout_id: one });
  expect(board.framesDone(one)).toBeNull();
});

test("knows how fast it goes once it has heard of it twice, and forgets that when it begins anew", async () => {
  const one = id();
  expect(board.framesPerSecond(one)).toBeNull();
  await says(one, 10);
  expect(board.framesPerSecond(one)).toBeNull();
  nowMs += 4_000;
  await says(one, 10);
  expect(board.framesPerSecond(one)).toBeNull();
  nowMs += 4_000;
  await says(one, 14);
  expect(board.framesPerSecond(one)).toBe(0.5);
  nowMs += 1_000;
  await says(one, 2);
  expect(board.framesPerSecond(one)).toBeNull();
});

test("holds a bounded number: the one that was silent for longest is forgotten", async () => {
  const [first, second, third, fourth] = [id(), id(), id(), id()];
  for (const rollout of [first, second, third]) await says(rollout, 1);
  await says(first, 2);
  await says(fourth, 1);
  expect([first, second, third, fourth].map((rollout) => board.framesDone(rollout))).toEqual([2, null, 1, 1]);
});

test("hears nothing once it is stopped", async () => {
  const own = await startProgressBoard(signals, clock);
  await own.stop();
  const one = id();
  await says(one, 5);
  expect(own.framesDone(one)).toBeNull();
});
