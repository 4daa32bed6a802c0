/** Scored rollouts through a real worker on the real small model: two runs, one video, one score. */
import { mkdtemp, readdir } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";

import type { JobId } from "#contract/ids.ts";
import type { Outcome, RolloutScore } from "#contract/jobs.ts";
import { createSlots } from "#platform/slots.ts";
import { silentLog } from "#test/support/postgres.ts";
import { type EndReason, type RolloutJobParts, runRolloutJob } from "#workers/inference/rollout-job.ts";
import type { Scorer } from "#workers/inference/score/scorer.ts";
import { createRawFile } from "#workers/inference/scored-run.ts";
import { startEncoder } from "#workers/inference/video/encoder.ts";
import { findFfmpeg } from "#workers/inference/video/ffmpeg-path.ts";

import { eventually } from "./support/eventually.ts";
import { createWorkersHere, type WorkersHere } from "./support/workers-here.ts";
import { createWorkplace, type Workplace } from "./support/workplace.ts";

const SCORED = { lane: "bulk", scored: true } as const;
const IDENTICAL: RolloutScore = { psnr_db: 100, ssim: 1, lpips: 0 };
/** A machine that is busy gives the scoring process, which has the lowest priority, little. */
const PATIENCE_MS = 60_000;

let place: Workplace;
let workers: WorkersHere;
let here: Awaited<ReturnType<WorkersHere["start"]>>;
beforeAll(async () => {
  place = await createWorkplace({ model: "pusht-small" });
  workers = createWorkersHere(place);
  here = await workers.start();
}, PATIENCE_MS);
afterAll(async () => {
  await workers.stop();
  await place.stop();
});

const outcomeOf = (id: JobId): Promise<Outcome> => place.outcomeOf(id, PATIENCE_MS);

function resultOf(outcome: Outcome) {
  if (outcome.kind !== "succeeded") throw new Error(`expected a success, got ${JSON.stringify(outcome)}`);
  return outcome.result;
}

/** Its samples, lines without comments. */
async function metric(name: string): Promise<string[]> {
  return (await here.registry.metrics()).split("\n").filter((line) => line.startsWith(name));
}

const countOf = async (name: string): Promise<number> =>
  Number((await metric(`dream_inference_${name}_seconds_count`))[0]?.split(" ")[1] ?? 0);

async function filesLeft(): Promise<string[]> {
  const own = (await readdir(tmpdir())).filter((name) => name.startsWith(`dream-engine-work-videos-${process.pid}-`));
  expect(own).toHaveLength(1);
  return readdir(join(tmpdir(), own[0] ?? ""));
}

/** One attempt without a worker around it, on the engine of `here`. `at`: told of each phase as it begins. */
async function attempt(at: (phase: "base" | "score", end: (reason: EndReason) => void) => void, chunks = 1) {
  const ending = new AbortController();
  const end = (reason: EndReason) => ending.abort(reason);
  const stored = Promise.withResolvers<void>();
  const engine: typeof here.engine = Object.create(here.engine, {
    submit: {
      value: (...[request, onFrames]: Parameters<typeof here.engine.submit>) => {
        const submission = here.engine.submit(request, onFrames);
        if (request.spec === "base") at("base", end);
        return submission;
      },
    },
  });
  const scorer: Scorer = {
    ...here.scorer,
    async score(pair, signal) {
      await stored.promise; // the video was not kept waiting
      at("score", end);
      return here.scorer.score(pair, signal);
    },
  };
  const blobs: typeof place.blobs = {
    ...place.blobs,
    async putFile(...file) {
      await place.blobs.putFile(...file);
      stored.resolve();
    },
  };
  const workDir = await mkdtemp(join(dirname(place.blobsDir), "videos-"));
  const slots = createSlots(1);
  const metrics = { baseRun: () => undefined, scored: () => undefined };
  const encoder = startEncoder({ ffmpegPath: await findFfmpeg(undefined), log: silentLog });
  onTestFinished(() => encoder.stop());
  const parts: RolloutJobParts = {
    manifest: place.manifest,
    encoder,
    encoderSlots: { realtime: slots, bulk: slots },
    samplesMax: 1,
    blobs,
    engine,
    scorer,
    metrics,
    workDir,
  };
  const turn = { take: () => Promise.resolve("run" as const), giveBack: () => undefined };
  const { data: job } = await place.prepare({ actions: [100], chunks, job: SCORED });
  const { signal } = ending;
  const outcome = await runRolloutJob({ job, lane: "bulk", alone: false, signal, turn, onProgress: () => {} }, parts);
  return { outcome, left: await readdir(workDir), job };
}

test("a scored rollout has the video of the unscored one, a score, and one served run in the engine's times", async () => {
  const [plain, scored] = [await place.submit({ actions: [100] }), await place.submit({ actions: [100], job: SCORED })];
  const [a, b] = [resultOf(await outcomeOf(plain.id)), resultOf(await outcomeOf(scored.id))];
  const videoOf = (result: typeof a) => place.blobs.get(result.video_keys[0] ?? "");
  expect(await videoOf(a)).toEqual(await videoOf(b));
  expect(a.score).toBeUndefined();
  expect(b.frames).toBe(a.frames);
  expect(b.score?.psnr_db).toBeGreaterThan(20);
  expect(b.score?.ssim).toBeGreaterThan(0.8);
  expect(b.score?.lpips).toBeLessThan(0.1);
  // Both are counted right after they were reported.
  await expect.poll(() => countOf("engine_wall")).toBe(2);
  expect([await countOf("base_run"), await countOf("scoring")]).toEqual([1, 1]);
  expect(await filesLeft()).toEqual([]);
});

test("its video is stored while it runs once more and is scored", async () => {
  const phases: string[] = [];
  const { outcome, left } = await attempt((phase) => phases.push(phase));
  expect(outcome).toMatchObject({ kind: "succeeded", result: { frames: 13, score: { psnr_db: expect.any(Number) } } });
  expect(phases).toEqual(["base", "score"]);
  expect(left).toEqual([]);
});

test.for([
  ["base", "cancelled"],
  ["base", "expired"],
  ["score", "cancelled"],
  ["score", "expired"],
] as const)("one that ends during its %s phase is %s, and leaves no file and no result", async ([when, reason]) => {
  const { outcome, left, job } = await attempt((phase, end) => {
    if (phase === when) end(reason);
  }, 4);
  expect(outcome).toMatchObject({ kind: reason });
  expect(left).toEqual([]);
  const result = `rollouts/${job.rollout_id}/1/result.json`;
  expect(await place.blobs.info(result)).toBeNull();
});

test("a cancellation that comes while it runs once more is heard", async () => {
  const { id, data } = await place.submit({ actions: [100], chunks: 20, job: SCORED });
  // Of 240 frames as many as there are: from here on it is the base run.
  await eventually(async () => (await place.progressOf(data.rollout_id)) >= 200, PATIENCE_MS);
  await place.queues.signals.publish({ kind: "cancel", rollout_id: data.rollout_id });
  expect(await outcomeOf(id)).toEqual({ kind: "cancelled", frames_delivered: 0 });
  expect(await filesLeft()).toEqual([]);
});

test("several candidates are not scored", async () => {
  const { id } = await place.submit({ actions: [1, 2], job: SCORED });
  expect(await outcomeOf(id)).toMatchObject({ kind: "failed", code: "bad_input" });
});

test("frames that cannot be written are told of at the end, and hold nobody up", async () => {
  const raw = createRawFile(join(place.modelsDir, "no such folder", "served.rgb"));
  await Promise.all([raw.write(new Uint8Array(3)), raw.write(new Uint8Array(3))]);
  await expect(raw.done()).rejects.toThrow("ENOENT");
});

test("a scoring process that dies costs nothing once, and the rollout twice; where nothing is optimised nothing differs", async () => {
  await workers.stop();
  let kills = 3;
  const mortal = (scorer: Scorer): Scorer => ({
    ...scorer,
    async score(pair, signal) {
      const scored = scorer.score(pair, signal);
      if (kills-- > 0) process.kill(await eventually(() => scorer.pid), "SIGKILL");
      return scored;
    },
  });
  here = await workers.start({ optimisations: [], wrapScorer: mortal });
  const first = await place.submit({ actions: [100], job: SCORED });
  expect(await outcomeOf(first.id)).toEqual({
    kind: "failed",
    code: "internal",
    message: "The video was made, but could not be scored.",
    frames_delivered: 0,
  });
  const second = await place.submit({ actions: [100], job: SCORED });
  expect(resultOf(await outcomeOf(second.id)).score).toEqual(IDENTICAL);
  expect(kills).toBe(-1);
  expect(await countOf("scoring")).toBe(1);
  expect(await filesLeft()).toEqual([]);
});
