/** The worker on a real queue with a real engine, in this process. What ends a process is in process.test.ts. */
import { execFile } from "node:child_process";
import { chmod, mkdtemp, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

import { Client } from "pg";
import { afterAll, afterEach, beforeAll, expect, onTestFinished, test } from "vitest";

import { blobKeys, type Outcome } from "#contract/jobs.ts";
import { runRolloutJob } from "#workers/inference/rollout-job.ts";
import { createSlots } from "#platform/slots.ts";
import { silentLog } from "#test/support/postgres.ts";
import { startEncoder } from "#workers/inference/video/encoder.ts";
import { findFfmpeg } from "#workers/inference/video/ffmpeg-path.ts";

import { eventually } from "./support/eventually.ts";
import { CHUNK, POISON_ACTION, SIDE } from "./support/tiny-bundle.ts";
import { createWorkersHere, unscored, type WorkersHere } from "./support/workers-here.ts";
import { createWorkplace, type Workplace } from "./support/workplace.ts";

/** Turns of the loop that make one forward last some milliseconds, so that a rollout can be caught in the act. */
const SLOW_ACTION = 4_000;
const LONG_CHUNKS = 100;

let place: Workplace;
let ffmpegPath: string;
let workers: WorkersHere;

beforeAll(async () => {
  place = await createWorkplace();
  workers = createWorkersHere(place);
  ffmpegPath = await findFfmpeg(undefined);
});
afterEach(() => workers.stop());
afterAll(() => place.stop());

const startWorker: WorkersHere["start"] = (changes) => workers.start(changes);

async function framesIn(key: string): Promise<number> {
  const options = { encoding: "buffer", maxBuffer: 2 ** 26 } as const;
  const file = join(place.blobsDir, key);
  const arguments_ = ["-i", file, "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"];
  return (await promisify(execFile)(ffmpegPath, arguments_, options)).stdout.length / (SIDE * SIDE * 3);
}

const videosOf = (outcome: Outcome): readonly string[] =>
  outcome.kind === "succeeded" ? outcome.result.video_keys : [];

test("a job becomes a video of T + 1 frames, a result and a settlement job, and is gone from its queue", async () => {
  const { registry } = await startWorker();
  const { id, data } = await place.submit({ chunks: 3 });
  const outcome = await place.outcomeOf(id);

  expect(outcome).toMatchObject({ kind: "succeeded", result: { frames: 7 } });
  const [video = "", ...others] = videosOf(outcome);
  expect(video).toMatch(new RegExp(`^rollouts/${data.rollout_id}/1/[0-9a-f-]{36}/rollout_000.mp4$`));
  expect(others).toEqual([]);
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
  const keys = videosOf(outcome);
  expect(keys.map((key) => key.slice(-7))).toEqual(["000.mp4", "001.mp4", "002.mp4", "003.mp4", "004.mp4", "005.mp4"]);
  for (const key of keys) expect(await framesIn(key)).toBe(5);
  expect(engine.stats.rows.frame_encoder).toBe(1 + 6); // the shared start, then each its own second chunk
});

test("more candidates than encoders, each longer than the engine runs ahead, all get their video", async () => {
  await startWorker();
  const chunks = 100; // the pipes to ffmpeg hold some frames of this small model as well
  const { id } = await place.submit({ actions: [1, 2, 3, 4, 5], chunks, job: { params: params({ num_steps: 1 }) } });
  const outcome = await place.outcomeOf(id, 30_000);
  expect(outcome).toMatchObject({ kind: "succeeded", result: { frames: 5 * (chunks * CHUNK + 1) } });
  for (const key of videosOf(outcome)) expect(await framesIn(key)).toBe(chunks * CHUNK + 1);
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

test("a cancellation is heard while a job has not entered the engine yet", async () => {
  const looking = Promise.withResolvers<void>();
  const look = Promise.withResolvers<void>();
  const get = async (key: string): Promise<Buffer> => {
    if (key.endsWith("/result.json")) {
      looking.resolve();
      await look.promise;
    }
    return place.blobs.get(key);
  };
  const { engine } = await startWorker({ blobs: { ...place.blobs, get } });
  const { id, data } = await place.submit();
  await looking.promise;
  const heard = Promise.withResolvers<void>();
  const end = await place.queues.signals.subscribe(["cancel"], () => heard.resolve()); // told after the worker
  await place.queues.signals.publish({ kind: "cancel", rollout_id: data.rollout_id });
  await heard.promise;
  await end();
  look.resolve();
  expect(await place.outcomeOf(id)).toEqual({ kind: "cancelled", frames_delivered: 0 });
  expect(engine.stats.samples_admitted).toBe(0);
});

test("two runs of one attempt leave both their videos whole, and the result names files that are there", async () => {
  const { id, data } = await place.prepare();
  const encoder = startEncoder({ ffmpegPath, log: silentLog });
  onTestFinished(() => encoder.stop());
  const run = async () => {
    const { engine } = await startWorker();
    const workDir = await mkdtemp(join(place.modelsDir, "videos-"));
    const encoderSlots = { realtime: createSlots(1), bulk: createSlots(1) };
    const parts = { ...place, ...unscored, engine, encoder, encoderSlots, samplesMax: 1, workDir };
    const signal = new AbortController().signal;
    const turn = { take: () => Promise.resolve("run" as const), giveBack: () => undefined };
    const attempt = { job: data, lane: data.lane, alone: false, signal, turn, onProgress: () => undefined };
    return runRolloutJob(attempt, parts);
  };
  const ends = await Promise.all([run(), run()]);
  const videos = ends.flatMap((end) => (end === "put_back" ? [] : videosOf(end)));
  expect(new Set(videos).size).toBe(2);
  for (const key of videos) expect(await framesIn(key)).toBe(5);

  await place.predictions.add(id, data); // whoever takes it now finds the result
  expect(videos).toEqual(expect.arrayContaining([...videosOf(await place.outcomeOf(id))]));
});

test("a failure is not reported by a worker that has lost the job to another one", async () => {
  const storing = Promise.withResolvers<void>();
  const taken = Promise.withResolvers<void>();
  const putFile = async () => {
    storing.resolve();
    await taken.promise;
    throw new Error("EIO");
  };
  const { registry } = await startWorker({ blobs: { ...place.blobs, putFile } });
  const { id } = await place.submit();
  await storing.promise;
  const client = new Client({ connectionString: place.databaseUrl });
  await client.connect();
  const lock = ["another worker", Date.now() + 3_600_000, id];
  await client.query("UPDATE bullmq.job SET lock_token = $1, locked_until_ms = $2 WHERE id = $3", lock);
  await client.end();
  taken.resolve();
  await eventually(async () => (await registry.metrics()).includes('end="lost"} 1'));
  expect(place.settled.has(id)).toBe(false);
  expect(await place.predictions.find(id)).toMatchObject({ state: "active" });
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

test("what is taken after it must have begun is not begun, unless it has been before", async () => {
  const past = Date.now() - 1;
  const { engine } = await startWorker();
  const late = await place.submit({ job: { start_by_ms: past } });
  expect(await place.outcomeOf(late.id)).toEqual({ kind: "expired" });
  expect(engine.stats.samples_admitted).toBe(0);
  const retried = await place.submit({ job: { start_by_ms: past, alone: true } });
  const inTime = await place.submit({ job: { start_by_ms: Date.now() + 60_000 } });
  expect(await place.outcomeOf(retried.id)).toMatchObject({ kind: "succeeded" });
  expect(await place.outcomeOf(inTime.id)).toMatchObject({ kind: "succeeded" });
});

test("a job whose result is there already goes straight to settlement", async () => {
  const { engine } = await startWorker();
  const { id, data } = await place.prepare();
  const timings = { engine_wall_ms: 1, fetch_ms: 2, encode_ms: 3, total_ms: 6 };
  const result = { video_keys: [blobKeys.video(data.rollout_id, 1, "run", 0)], frames: 5, timings };
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

test("a rollout that outlasts two restarts runs again after each, and nobody takes it for what killed them", async () => {
  const { id, data } = await place.submit({ chunks: LONG_CHUNKS, actions: [SLOW_ACTION] });
  for (let restart = 0; restart < 2; restart++) {
    const { engine, worker } = await startWorker();
    await place.progressOf(data.rollout_id);
    await worker.stop(0);
    expect(await place.predictions.find(id)).toEqual({ state: "waiting", data });
    await engine.stop();
  }
  await startWorker();
  expect(await place.outcomeOf(id)).toMatchObject({ kind: "succeeded" });
});
