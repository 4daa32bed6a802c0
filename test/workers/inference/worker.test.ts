/** The worker on a real queue with a real engine, in this process. What ends a process is in process.test.ts. */
import { execFile } from "node:child_process";
import { chmod, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

import { Registry } from "prom-client";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";

import type { BlobStore } from "#blobs/blob-store.ts";
import { blobKeys } from "#contract/jobs.ts";
import { systemClock } from "#platform/clock.ts";
import { silentLog } from "#test/support/postgres.ts";
import { type Engine, startEngine } from "#workers/inference/engine/engine.ts";
import { createWorkerMetrics } from "#workers/inference/metrics.ts";
import { findFfmpeg } from "#workers/inference/video/ffmpeg-path.ts";
import { type InferenceWorker, startInferenceWorker } from "#workers/inference/worker.ts";

import { eventually } from "./support/eventually.ts";
import { POISON_ACTION, SIDE } from "./support/tiny-bundle.ts";
import { createWorkplace, type Workplace } from "./support/workplace.ts";

/** Turns of the loop that make one forward last some milliseconds, so that a rollout can be caught in the act. */
const SLOW_ACTION = 4_000;
const LONG_CHUNKS = 100;

let place: Workplace;
let ffmpegPath: string;
const running: { engine: Engine; worker: InferenceWorker }[] = [];

beforeAll(async () => {
  place = await createWorkplace();
  ffmpegPath = await findFfmpeg(undefined);
});
afterEach(async () => {
  for (const { engine, worker } of running.splice(0)) {
    await worker.stop();
    await engine.stop();
  }
});
afterAll(() => place.stop());

async function startWorker(changes: { ffmpegPath?: string; blobs?: BlobStore } = {}) {
  const { manifest, bundleDir, queues, blobs } = place;
  const log = silentLog;
  const engine = await startEngine({ bundleDir, manifest, providers: ["cpu"], runTimeoutMs: 20_000, log });
  const registry = new Registry();
  const metrics = createWorkerMetrics(registry, manifest.slug, engine);
  const parts = { manifest, queues, blobs, engine, ffmpegPath, clock: systemClock, log, metrics, ...changes };
  const worker = await startInferenceWorker(parts);
  running.push({ engine, worker });
  return { engine, worker, registry };
}

async function framesIn(key: string): Promise<number> {
  const options = { encoding: "buffer", maxBuffer: 2 ** 26 } as const;
  const file = join(place.blobsDir, key);
  const arguments_ = ["-i", file, "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"];
  return (await promisify(execFile)(ffmpegPath, arguments_, options)).stdout.length / (SIDE * SIDE * 3);
}

test("a job becomes a video of T + 1 frames, a result and a settlement job, and is gone from its queue", async () => {
  const { registry } = await startWorker();
  const { id, data } = await place.submit({ chunks: 3 });
  const outcome = await place.outcomeOf(id);

  const video = blobKeys.video(data.rollout_id, 1, 0);
  expect(outcome).toMatchObject({ kind: "succeeded", result: { video_keys: [video], frames: 7 } });
  expect(await framesIn(video)).toBe(7);
  const result: unknown = JSON.parse((await place.blobs.get(blobKeys.result(data.rollout_id, 1))).toString());
  expect(outcome).toEqual({ kind: "succeeded", result });
  await eventually(async () => (await place.predictions.find(id)) === null);
  const shown = await registry.metrics();
  expect(shown).toContain('dream_inference_jobs_total{model="tiny",end="succeeded"} 1');
  expect(shown).toContain('dream_inference_graph_runs_total{model="tiny",graph="decoder"} 6');
});

test("more candidates than the engine holds come out in submission order, all of them", async () => {
  const { engine } = await startWorker();
  const { id } = await place.submit({ actions: [1, 2, 3, 4, 5, 6], job: { params: params({ guidance: 1 }) } });
  const outcome = await place.outcomeOf(id);
  expect(outcome).toMatchObject({ kind: "succeeded", result: { frames: 30 } });
  const keys = outcome.kind === "succeeded" ? outcome.result.video_keys : [];
  expect(keys.map((key) => key.slice(-7))).toEqual(["000.mp4", "001.mp4", "002.mp4", "003.mp4", "004.mp4", "005.mp4"]);
  for (const key of keys) expect(await framesIn(key)).toBe(5);
  expect(engine.stats.rows.frame_encoder).toBe(1 + 6); // the shared start, then each its own second chunk
});

const params = (changes: object) => ({ seed: "7", num_steps: 2, guidance: 0, prompt: "", ...changes });

test("concurrent jobs share forwards", async () => {
  const { engine } = await startWorker();
  const jobs = await Promise.all([1, 2, 3].map(() => place.submit({ chunks: 40, actions: [SLOW_ACTION] })));
  for (const { id } of jobs) expect(await place.outcomeOf(id)).toMatchObject({ kind: "succeeded" });
  expect(engine.stats.denoise_batches[3]).toBeGreaterThan(10);
});

test.each([
  ["its frame is gone", (data) => place.blobs.delete(data.frame_key), "the input rollouts/"],
  ["its frame is no image", (data) => place.blobs.put(data.frame_key, Buffer.from("text")), "is not an image"],
  [
    "its actions are cut short",
    (data) => place.blobs.put(data.actions_key, Buffer.alloc(12)),
    "the actions have 12 bytes, expected 16 for float32 [1, 4, 1]",
  ],
  [
    "its actions hold NaN",
    (data) => place.blobs.put(data.actions_key, new Uint8Array(Float32Array.of(1, NaN, 1, 1).buffer)),
    "NaN or infinity",
  ],
] satisfies [string, (data: { frame_key: string; actions_key: string }) => Promise<void>, string][])(
  "a job fails as bad input, without a retry, when %s",
  async (_, spoil, message) => {
    const { engine } = await startWorker();
    const { id, data } = await place.prepare();
    await spoil(data);
    await place.predictions.add(id, data);
    expect(await place.outcomeOf(id)).toMatchObject({
      kind: "failed",
      code: "bad_input",
      message: expect.stringContaining(message) as string,
      frames_delivered: 0,
    });
    expect(engine.stats.samples_admitted).toBe(0);
  },
);

test("a cancelled rollout leaves the engine and is reported as cancelled", async () => {
  const { engine } = await startWorker();
  const { id, data } = await place.submit({ chunks: LONG_CHUNKS, actions: [SLOW_ACTION] });
  expect(await place.progressOf(data.rollout_id)).toBeGreaterThan(0);
  await place.queues.signals.publish({ kind: "cancel", rollout_id: data.rollout_id });
  expect(await place.outcomeOf(id)).toEqual({ kind: "cancelled", frames_delivered: 0 });
  expect(engine.stats.samples_finished).toBe(0);
});

test("a rollout past its deadline is given up as expired, also in the middle", async () => {
  await startWorker();
  const late = await place.submit({ job: { deadline_ms: Date.now() - 1 } });
  const soon = await place.submit({
    chunks: LONG_CHUNKS,
    actions: [SLOW_ACTION],
    job: { deadline_ms: Date.now() + 500 },
  });
  expect(await place.outcomeOf(late.id)).toEqual({ kind: "expired" });
  expect(await place.outcomeOf(soon.id)).toEqual({ kind: "expired" });
});

test("a job whose result is there already goes straight to settlement", async () => {
  const { engine } = await startWorker();
  const { id, data } = await place.prepare();
  const timings = { engine_wall_ms: 1, fetch_ms: 2, encode_ms: 3, total_ms: 6 };
  const result = { video_keys: [blobKeys.video(data.rollout_id, 1, 0)], frames: 5, timings };
  await place.blobs.put(blobKeys.result(data.rollout_id, 1), Buffer.from(JSON.stringify(result)));
  await place.predictions.add(id, data);
  expect(await place.outcomeOf(id)).toEqual({ kind: "succeeded", result });
  expect(engine.stats.samples_admitted).toBe(0);
});

test("after an engine fault all its jobs run once more, alone: the poison fails, its neighbour does not", async () => {
  const first = await startWorker();
  const neighbour = await place.submit({ chunks: 40, actions: [SLOW_ACTION] });
  await eventually(() => first.engine.stats.samples_admitted === 1);
  const poison = await place.submit({ actions: [POISON_ACTION] });
  expect((await first.worker.failed).message).toContain("the engine failed");
  expect(await place.predictions.find(poison.id)).toMatchObject({ state: "waiting", data: { alone: true } });
  expect(await place.predictions.find(neighbour.id)).toMatchObject({ state: "waiting", data: { alone: true } });

  // The fleet would start the next process; the poison ends that one as well.
  const second = await startWorker();
  expect((await second.worker.failed).message).toContain("the engine failed");
  expect(await place.outcomeOf(poison.id)).toMatchObject({ kind: "failed", code: "engine_failed" });
  await startWorker();
  const later = await place.submit();
  expect(await place.outcomeOf(neighbour.id)).toMatchObject({ kind: "succeeded" });
  expect(await place.outcomeOf(later.id)).toMatchObject({ kind: "succeeded" });
});

test("a job fails as internal when its video cannot be encoded", async () => {
  const broken = join(place.modelsDir, "ffmpeg");
  await writeFile(broken, `#!/bin/sh\ncase "$*" in *-encoders|*-formats) exec ${ffmpegPath} "$@";; esac\nexit 1\n`);
  await chmod(broken, 0o755);
  const { engine } = await startWorker({ ffmpegPath: broken });
  const { id } = await place.submit({ chunks: LONG_CHUNKS, actions: [SLOW_ACTION] });
  expect(await place.outcomeOf(id)).toMatchObject({ kind: "failed", code: "internal" });
  expect(engine.stats.samples_finished).toBe(0); // nobody wanted the rest
});

const diskFull = () => Promise.reject(new Error("ENOSPC: no space left on device"));

test("a job fails as internal when its result cannot be stored", async () => {
  await startWorker({ blobs: { ...place.blobs, putFile: diskFull } });
  const { id } = await place.submit();
  expect(await place.outcomeOf(id)).toMatchObject({ kind: "failed", code: "internal" });
});

test("a stopping worker finishes what it runs and puts back what it has not begun", async () => {
  const { engine, worker } = await startWorker();
  const begun = await place.submit({ actions: [SLOW_ACTION, SLOW_ACTION, SLOW_ACTION, SLOW_ACTION], chunks: 10 });
  await eventually(() => engine.stats.samples_admitted === 4);
  const waiting = await place.submit();
  await eventually(async () => (await place.predictions.find(waiting.id))?.state === "active");
  await worker.stop();
  expect(await place.outcomeOf(begun.id)).toMatchObject({ kind: "succeeded" });
  expect(await place.predictions.find(waiting.id)).toMatchObject({ state: "waiting" });
});
