/** While one rollout has the engine, the next has its inputs fetched and the one before is encoded and stored. */
import { chmod, mkdtemp, readdir, writeFile } from "node:fs/promises";
import { Socket } from "node:net";
import { join } from "node:path";
import { Duplex } from "node:stream";

import { afterAll, afterEach, beforeAll, expect, onTestFinished, test, vi } from "vitest";

import { createSlots } from "#platform/slots.ts";
import { silentLog } from "#test/support/postgres.ts";
import type { Engine } from "#workers/inference/engine/engine.ts";
import { type EngineTurn, runRolloutJob } from "#workers/inference/rollout-job.ts";
import { startEncoder } from "#workers/inference/video/encoder.ts";
import { findFfmpeg } from "#workers/inference/video/ffmpeg-path.ts";

import { eventually } from "./support/eventually.ts";
import { CHUNK, SIDE } from "./support/tiny-bundle.ts";
import { createWorkersHere, unscored, type WorkersHere } from "./support/workers-here.ts";
import { createWorkplace, type Workplace } from "./support/workplace.ts";

/** Turns of the loop that make one forward last some milliseconds. */
const SLOW_ACTION = 4_000;
const FRAME_BYTES = SIDE * SIDE * 3;

let place: Workplace;
let workers: WorkersHere;
let ffmpegPath: string;
beforeAll(async () => {
  place = await createWorkplace();
  workers = createWorkersHere(place);
  ffmpegPath = await findFfmpeg(undefined);
});
afterEach(() => workers.stop());
afterAll(() => place.stop());

/** As large as the engine: nothing fits beside it. */
const full = (action: number, chunks: number) => ({ actions: Array<number>(4).fill(action), chunks });

test("the next rollout's inputs are fetched while the engine is full; those of one that runs alone are not", async () => {
  const fetched: string[] = [];
  const get = (key: string) => {
    fetched.push(key);
    return place.blobs.get(key);
  };
  const { engine } = await workers.start({ blobs: { ...place.blobs, get } });
  const first = await place.submit(full(20 * SLOW_ACTION, 100));
  await place.progressOf(first.data.rollout_id);
  const next = await place.submit({ actions: [1] });
  await eventually(() => fetched.includes(next.data.actions_key));
  expect(engine.stats.samples_admitted).toBe(4);

  const alone = await place.submit({ job: { alone: true } });
  await eventually(async () => (await place.predictions.find(alone.id))?.state === "active");
  // It put the next one back, and waits for the first one's end.
  await eventually(async () => (await place.predictions.find(next.id))?.state === "waiting");
  expect(place.settled.has(first.id)).toBe(false);
  expect(fetched).not.toContain(alone.data.actions_key);
  await place.queues.signals.publish({ kind: "cancel", rollout_id: first.data.rollout_id });
  for (const { id } of [alone, next]) expect(await place.outcomeOf(id)).toMatchObject({ kind: "succeeded" });
});

test("the engine goes on with the next rollout while the one before is still being stored", async () => {
  const stored = Promise.withResolvers<void>();
  const storing: string[] = [];
  const putFile = async (key: string, file: string) => {
    storing.push(key);
    await stored.promise;
    return place.blobs.putFile(key, file);
  };
  await workers.start({ blobs: { ...place.blobs, putFile } });
  const first = await place.submit(full(1, 1));
  const next = await place.submit(full(1, 1));
  for (const { data } of [first, next]) {
    await eventually(() => storing.filter((key) => key.includes(data.rollout_id)).length === 4);
  }
  expect(place.settled.has(first.id)).toBe(false);
  stored.resolve();
  for (const { id } of [first, next]) expect(await place.outcomeOf(id)).toMatchObject({ kind: "succeeded" });
});

test("the videos of all candidates are stored at the same time", async () => {
  const all = Promise.withResolvers<void>();
  let storing = 0;
  const putFile = async (key: string, file: string) => {
    storing += 1;
    if (storing === 4) all.resolve();
    await all.promise; // for ever, if one waits for another
    return place.blobs.putFile(key, file);
  };
  await workers.start({ blobs: { ...place.blobs, putFile } });
  const { id } = await place.submit(full(1, 1));
  expect(await place.outcomeOf(id)).toMatchObject({ kind: "succeeded", result: { frames: 4 * (CHUNK + 1) } });
});

test("a rollout that is called off while it waits for the engine is reported at once", async () => {
  await workers.start();
  const first = await place.submit(full(20 * SLOW_ACTION, 100));
  await place.progressOf(first.data.rollout_id);
  const next = await place.submit({ actions: [1] });
  await eventually(async () => (await place.predictions.find(next.id))?.state === "active");
  await place.queues.signals.publish({ kind: "cancel", rollout_id: next.data.rollout_id });
  expect(await place.outcomeOf(next.id)).toMatchObject({ kind: "cancelled" });
  expect(place.settled.has(first.id)).toBe(false);
  await place.queues.signals.publish({ kind: "cancel", rollout_id: first.data.rollout_id });
});

/** An attempt on an engine that gives `frames` of each candidate when it is told to. */
async function attemptOn(candidates: number, frames: () => Promise<Uint8Array> | Uint8Array, path = ffmpegPath) {
  const { data: job } = await place.prepare({ actions: Array<number>(candidates).fill(1), chunks: 1 });
  const engine: Engine = {
    ...(await workers.start()).engine,
    submit(_request, onFrames) {
      const done = (async () => {
        for (let candidate = 0; candidate < candidates; candidate++) {
          const given = frames();
          await onFrames(candidate, given instanceof Uint8Array ? given : await given);
        }
        return { kind: "finished", engineWallMs: 1 } as const;
      })();
      return { done, cancel: () => undefined };
    },
  };
  const calls: string[] = [];
  const turn: EngineTurn = {
    take: async () => {
      calls.push("take");
      return "run";
    },
    giveBack: () => void calls.push("give back"),
  };
  const encoderSlots = { realtime: createSlots(4), bulk: createSlots(4) };
  const workDir = await mkdtemp(join(place.modelsDir, "videos-"));
  const encoder = startEncoder({ ffmpegPath: path, log: silentLog });
  onTestFinished(() => encoder.stop());
  const parts = { ...place, ...unscored, engine, encoder, encoderSlots, samplesMax: 4, workDir };
  const { signal } = new AbortController();
  const attempt = { job, lane: job.lane, alone: false, signal, turn, onProgress: () => undefined };
  return { run: () => runRolloutJob(attempt, parts), calls };
}

test("the encoders of what the engine takes at once run before it gives the first frame", async () => {
  const spawned = await mkdtemp(join(place.modelsDir, "spawned-"));
  const path = join(spawned, "..", "ffmpeg-that-tells");
  const tell = `case "$*" in *-encoders|*-formats) ;; *) touch ${spawned}/$$;; esac`;
  await writeFile(path, `#!/bin/sh\n${tell}\nexec ${ffmpegPath} "$@"\n`);
  await chmod(path, 0o755);
  let running = 0;
  const { run, calls } = await attemptOn(
    6,
    async () => {
      // Six candidates on an engine of four: the last two are another wave.
      running ||= await eventually(async () => (await readdir(spawned)).length === 4 && 4);
      return new Uint8Array(CHUNK * FRAME_BYTES);
    },
    path,
  );
  expect(await run()).toMatchObject({ kind: "succeeded", result: { frames: 6 * (CHUNK + 1) } });
  expect(running).toBe(4);
  expect(calls).toEqual(["take", "give back"]);
});

test("an engine that gives frames as soon as it is asked has them in the videos", async () => {
  const { run } = await attemptOn(2, () => new Uint8Array(CHUNK * FRAME_BYTES));
  expect(await run()).toMatchObject({ kind: "succeeded", result: { frames: 2 * (CHUNK + 1) } });
});

test("pixels reach ffmpeg in the very buffers that the engine gave, uncopied", async () => {
  const given = new Set<ArrayBufferLike>();
  const written = { same: 0, copied: 0 };
  const write = vi.spyOn(Duplex.prototype, "write");
  const { run } = await attemptOn(2, async () => {
    const frames = new Uint8Array(CHUNK * FRAME_BYTES);
    given.add(frames.buffer);
    return frames;
  });
  try {
    expect(await run()).toMatchObject({ kind: "succeeded" });
    for (const [i, [chunk]] of write.mock.calls.entries()) {
      const isPixels = chunk instanceof Uint8Array && chunk.byteLength === CHUNK * FRAME_BYTES;
      if (!(write.mock.contexts[i] instanceof Socket) || !isPixels) continue;
      written[given.has(chunk.buffer) ? "same" : "copied"] += chunk.byteLength;
    }
  } finally {
    write.mockRestore();
  }
  expect(written).toEqual({ same: 2 * CHUNK * FRAME_BYTES, copied: 0 });
});
