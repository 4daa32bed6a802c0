/**
 * One attempt at one rollout: inputs → engine → videos → result. Says how it ended; tells nobody. Only the engine is waited
 * for in turn: while others have it this one's inputs are fetched, and its videos are finished and stored while the next
 * have it.
 */
import { randomUUID } from "node:crypto";
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";

import type { BlobStore } from "#blobs/blob-store.ts";
import type { JobId } from "#contract/ids.ts";
import { blobKeys, type Outcome, type PredictJob, type RolloutResult } from "#contract/jobs.ts";
import type { Manifest } from "#contract/manifest.ts";
import type { Lane } from "#contract/rollout.ts";

import type { Verdict } from "./admission.ts";
import type { Engine } from "./engine/engine.ts";
import { fetchInputs, type RolloutInputs } from "./inputs.ts";
import type { Slots } from "#platform/slots.ts";
import { startEncoding, type VideoEncoding } from "./video/encode.ts";

export interface RolloutJobParts {
  readonly manifest: Manifest;
  readonly blobs: BlobStore;
  readonly engine: Engine;
  readonly ffmpegPath: string;
  /**
   * ffmpeg processes at once, as many in a lane as samples that the engine holds of it: a parked bulk sample keeps its
   * encoder waiting, and that must not be one that a realtime sample needs.
   */
  readonly encoderSlots: Readonly<Record<Lane, Slots>>;
  /** Samples that a lane may have in the engine. */
  readonly samplesMax: number;
  /** Local folder for videos in the making. */
  readonly workDir: string;
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
  readonly id: JobId;
  readonly job: PredictJob;
  readonly lane: Lane;
  readonly alone: boolean;
  readonly signal: AbortSignal;
  readonly turn: EngineTurn;
  /** Called with the frames generated so far, of all candidates together. */
  readonly onProgress: (frames: number) => void;
}

/** "put_back": it had no turn. Throws BadInput, EngineFault, VideoError, or what the blob store threw. */
export async function runRolloutJob(attempt: Attempt, parts: RolloutJobParts): Promise<Outcome | "put_back"> {
  const { job, signal, turn } = attempt;
  if (signal.aborted) return outcomeOf(signal);
  const { blobs } = parts;
  const startedAt = performance.now();
  const workDir = join(parts.workDir, attempt.id);
  await mkdir(workDir, { recursive: true });
  const videos: VideoEncoding[] = [];
  try {
    const inputs = await fetchInputs(blobs, job, parts.manifest);
    const fetchedAt = performance.now();
    if (signal.aborted) return outcomeOf(signal);

    const verdict = await turn.take();
    if (verdict === "put_back") return "put_back";
    if (verdict === "called_off") return outcomeOf(signal);
    const begunAt = performance.now();
    const files = inputs.actions.map((_, candidate) => join(workDir, `${candidate}.mp4`));
    const engineWallMs = await dream(attempt, parts, inputs, files, videos).finally(() => turn.giveBack());
    if (engineWallMs === null) return outcomeOf(signal);
    const dreamtAt = performance.now();

    const runId = randomUUID();
    const videoKeys = await Promise.all(
      files.map(async (file, candidate) => {
        await videos[candidate]?.finish();
        const key = blobKeys.video(job.rollout_id, job.attempt, runId, candidate);
        await blobs.putFile(key, file);
        return key;
      }),
    );
    const finishedAt = performance.now();
    const result: RolloutResult = {
      video_keys: videoKeys,
      frames: job.k * (job.actions_per_candidate + 1),
      timings: {
        engine_wall_ms: Math.round(engineWallMs),
        fetch_ms: Math.round(fetchedAt - startedAt),
        encode_ms: Math.round(finishedAt - dreamtAt),
        total_ms: Math.round(fetchedAt - startedAt + finishedAt - begunAt),
      },
    };
    await blobs.put(blobKeys.result(job.rollout_id, job.attempt), Buffer.from(JSON.stringify(result)));
    return { kind: "succeeded", result };
  } finally {
    await Promise.all(videos.map((video) => video.abort()));
    await rm(workDir, { recursive: true, force: true });
  }
}

/**
 * Runs the engine and feeds the encoders, which are added to `videos`: those of the candidates that the engine takes at
 * once before it has anything to give, those of later waves as their candidates begin. Resolves with the engine's wall time,
 * or null when the attempt was told to end.
 */
async function dream(
  { id, job, lane, alone, signal, onProgress }: Attempt,
  { engine, manifest, ffmpegPath, encoderSlots, samplesMax }: RolloutJobParts,
  { frame, actions }: RolloutInputs,
  files: readonly string[],
  videos: VideoEncoding[],
): Promise<number | null> {
  const { width, height, fps } = manifest.shapes;
  const broken = Promise.withResolvers<never>();
  broken.promise.catch(() => undefined); // nobody listens once the engine is done
  let framesDone = 0;
  let over = false;

  function startVideo(candidate: number): VideoEncoding {
    const file = files[candidate] ?? "";
    const options = { ffmpegPath, file, width, height, fps, slots: encoderSlots[lane] };
    const video = startEncoding({ ...options, frames: job.actions_per_candidate + 1 });
    void video.failed.then(broken.reject);
    void video.write(frame);
    videos[candidate] = video;
    return video;
  }

  async function onFrames(candidate: number, frames: Uint8Array): Promise<void> {
    if (over) return;
    const video = videos[candidate] ?? startVideo(candidate);
    framesDone += frames.byteLength / (width * height * 3);
    onProgress(framesDone);
    await video.write(frames);
  }

  const { seed, num_steps: numSteps, guidance, prompt } = job.params;
  const request = {
    id,
    seed: BigInt(seed),
    numSteps,
    guidance,
    prompt,
    lane,
    spec: "served",
    alone,
    frame,
    actions,
  } as const;
  const submission = engine.submit(request, onFrames);
  for (let candidate = 0; candidate < Math.min(job.k, samplesMax); candidate++) startVideo(candidate);
  const cancel = () => submission.cancel();
  if (signal.aborted) cancel();
  signal.addEventListener("abort", cancel);
  try {
    const result = await Promise.race([submission.done, broken.promise]);
    return result.kind === "finished" ? result.engineWallMs : null;
  } finally {
    over = true;
    cancel(); // after a broken encoder nobody wants the rest; else there is nothing left to cancel
    signal.removeEventListener("abort", cancel);
  }
}

function outcomeOf(signal: AbortSignal): Outcome {
  const reason = signal.reason as EndReason; // worker.ts aborts with nothing else
  return reason === "expired" ? { kind: "expired" } : { kind: "cancelled", frames_delivered: 0 };
}
