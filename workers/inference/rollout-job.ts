/**
 * One attempt at one rollout: inputs → engine → videos → result. Says how it ended; tells nobody. Only the engine is waited
 * for in turn: while others have it this one's inputs are fetched, and its videos are finished and stored while the next
 * have it. A scored rollout runs twice in its turn, as it is served and then by the base spec, and ends with its score.
 */
import { randomUUID } from "node:crypto";
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";

import type { BlobStore } from "#blobs/blob-store.ts";
import { blobKeys, type Outcome, type PredictJob, type RolloutResult } from "#contract/jobs.ts";
import type { Manifest } from "#contract/manifest.ts";
import type { Lane } from "#contract/rollout.ts";

import type { Verdict } from "./admission.ts";
import type { Engine } from "./engine/engine.ts";
import type { EngineRequest } from "./engine/loop.ts";
import { runEngine } from "./engine-run.ts";
import { BadInput, fetchInputs, type RolloutInputs } from "./inputs.ts";
import type { WorkerMetrics } from "./metrics.ts";
import type { Scorer } from "./score/scorer.ts";
import { createRawFile, type RawFile, scoreRuns } from "./scored-run.ts";
import { runServed } from "./served-run.ts";
import type { Slots } from "#platform/slots.ts";
import type { Encoder } from "./video/encoder.ts";
import type { VideoEncoding } from "./video/encode.ts";

export interface RolloutJobParts {
  readonly manifest: Manifest;
  readonly blobs: BlobStore;
  readonly engine: Engine;
  readonly encoder: Encoder;
  /**
   * ffmpeg processes at once, as many in a lane as samples that the engine holds of it: a parked bulk sample keeps its
   * encoder waiting, and that must not be one that a realtime sample needs.
   */
  readonly encoderSlots: Readonly<Record<Lane, Slots>>;
  /** Samples that a lane may have in the engine. */
  readonly samplesMax: number;
  /** Local folder for videos in the making. */
  readonly workDir: string;
  readonly scorer: Scorer;
  readonly metrics: Pick<WorkerMetrics, "baseRun" | "scored">;
}

/** Why an attempt was told to end; the `reason` of its AbortSignal. */
export type EndReason = "cancelled" | "expired";

/** Its place in the engine. */
export interface EngineTurn {
  take(): Promise<Verdict>;
  /** Called once after a `take` that gave "run". */
  giveBack(): void;
}

export interface Attempt {
  readonly job: PredictJob;
  readonly lane: Lane;
  readonly alone: boolean;
  readonly signal: AbortSignal;
  readonly turn: EngineTurn;
  /** Called with the frames generated so far, of all candidates together. */
  readonly onProgress: (frames: number) => void;
}

/** What an attempt leaves behind while it goes on; gone when it is over. */
interface Work {
  readonly runId: string;
  readonly dir: string;
  readonly videos: VideoEncoding[];
  /** Of a scored rollout: the frames of both runs. */
  readonly raw: { readonly served: RawFile; readonly base: RawFile } | null;
  storing: Promise<Stored> | null;
}

/** "put_back": it had no turn. Throws BadInput, EngineFault, VideoError, ScorerFailed, or what the blob store threw. */
export async function runRolloutJob(attempt: Attempt, parts: RolloutJobParts): Promise<Outcome | "put_back"> {
  const { job, signal } = attempt;
  if (signal.aborted) return outcomeOf(signal);
  // Not the job's id: a job may be here twice, once by each queue (docs/operations.md, Upgrades).
  const runId = randomUUID();
  const dir = join(parts.workDir, runId);
  const rawFile = (name: string) => createRawFile(join(dir, `${name}.rgb`));
  const raw = job.scored ? { served: rawFile("served"), base: rawFile("base") } : null;
  const work: Work = { runId, dir, videos: [], raw, storing: null };
  await mkdir(dir, { recursive: true });
  try {
    return await run(work, attempt, parts);
  } catch (error) {
    if (signal.aborted && error === signal.reason) return outcomeOf(signal);
    throw error;
  } finally {
    await Promise.all(work.videos.map((video) => video.abort()));
    // What they met was told of, or the attempt has another end; but nothing may write there any more.
    await Promise.allSettled([work.storing, raw?.served.done(), raw?.base.done()]);
    await rm(dir, { recursive: true, force: true });
  }
}

async function run(work: Work, attempt: Attempt, parts: RolloutJobParts): Promise<Outcome | "put_back"> {
  const { job, signal, turn } = attempt;
  const { blobs, manifest } = parts;
  const startedAt = performance.now();
  if (job.scored && job.k !== 1) throw new BadInput(`${job.k} candidates to be scored, expected 1`);
  const inputs = await fetchInputs(blobs, job, manifest);
  const fetchedAt = performance.now();
  if (signal.aborted) return outcomeOf(signal);

  const verdict = await turn.take();
  if (verdict === "put_back") return "put_back";
  if (verdict === "called_off") return outcomeOf(signal);
  const begunAt = performance.now();
  const dreamt = await dream(work, inputs, attempt, parts).finally(() => turn.giveBack());
  if (dreamt === null) return outcomeOf(signal);

  const score = work.raw ? await scored(work.raw, attempt, parts) : null;
  const stored = await dreamt.storing;
  const result: RolloutResult = {
    video_keys: stored.keys,
    frames: job.k * (job.actions_per_candidate + 1),
    timings: {
      engine_wall_ms: Math.round(dreamt.engineWallMs),
      fetch_ms: Math.round(fetchedAt - startedAt),
      encode_ms: Math.round(stored.tookMs),
      total_ms: Math.round(fetchedAt - startedAt + performance.now() - begunAt),
    },
    ...(score && { score }),
  };
  await blobs.put(blobKeys.result(job.rollout_id, job.attempt), Buffer.from(JSON.stringify(result)));
  return { kind: "succeeded", result };
}

interface Dreamt {
  /** Of the served run alone. */
  readonly engineWallMs: number;
  readonly storing: Promise<Stored>;
}

/** Everything that needs the engine; null when the attempt was told to end. */
async function dream(
  work: Work,
  inputs: RolloutInputs,
  attempt: Attempt,
  parts: RolloutJobParts,
): Promise<Dreamt | null> {
  const { job, lane, alone, signal, onProgress } = attempt;
  const { engine, encoderSlots, metrics } = parts;
  const { seed, num_steps: numSteps, guidance, prompt } = job.params;
  const sampling = { seed: BigInt(seed), numSteps, guidance, prompt };
  const request: EngineRequest = { id: work.runId, ...inputs, ...sampling, lane, spec: "served", alone };
  const framesPerVideo = job.actions_per_candidate + 1;
  const files = inputs.actions.map((_, candidate) => join(work.dir, `${candidate}.mp4`));
  const served = { request, framesPerVideo, files, raw: work.raw?.served ?? null, onProgress, signal };
  const engineWallMs = await runServed(served, { ...parts, encoderSlots: encoderSlots[lane] }, work.videos);
  if (engineWallMs === null) return null;
  const storing = store(files, work, job, parts.blobs);
  storing.catch(() => undefined); // heard of where it is waited for
  work.storing = storing;
  if (work.raw === null) return { engineWallMs, storing };

  const { base } = work.raw;
  const onFrames = (_: number, frames: Uint8Array) => base.write(frames);
  const baseRequest = { ...request, id: `${work.runId}-base`, lane: "bulk", spec: "base" } as const;
  const baseWallMs = await runEngine(engine, { request: baseRequest, onFrames, signal });
  if (baseWallMs === null) return null;
  metrics.baseRun(baseWallMs);
  return { engineWallMs, storing };
}

interface Stored {
  /** One video a candidate. */
  readonly keys: string[];
  readonly tookMs: number;
}

/** Finishes and stores the videos. */
async function store(files: readonly string[], work: Work, job: PredictJob, blobs: BlobStore): Promise<Stored> {
  const startedAt = performance.now();
  const keys = await Promise.all(
    files.map(async (file, candidate) => {
      await work.videos[candidate]?.finish();
      const key = blobKeys.video(job.rollout_id, job.attempt, work.runId, candidate);
      await blobs.putFile(key, file);
      return key;
    }),
  );
  return { keys, tookMs: performance.now() - startedAt };
}

async function scored(raw: NonNullable<Work["raw"]>, { job, signal }: Attempt, parts: RolloutJobParts) {
  const { scorer, manifest, metrics } = parts;
  const startedAt = performance.now();
  const score = await scoreRuns(scorer, raw, { ...manifest.shapes, frames: job.actions_per_candidate }, signal);
  metrics.scored(performance.now() - startedAt);
  return score;
}

function outcomeOf(signal: AbortSignal): Outcome {
  const reason = signal.reason as EndReason; // worker.ts aborts with nothing else
  return reason === "expired" ? { kind: "expired" } : { kind: "cancelled", frames_delivered: 0 };
}
