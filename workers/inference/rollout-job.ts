/** One attempt at one rollout: inputs → engine → videos → result. Says how it ended; tells nobody. */
import { randomUUID } from "node:crypto";
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";

import type { BlobStore } from "#blobs/blob-store.ts";
import type { JobId } from "#contract/ids.ts";
import { blobKeys, type Outcome, type PredictJob, type RolloutResult } from "#contract/jobs.ts";
import type { Manifest } from "#contract/manifest.ts";

import type { Engine } from "./engine/engine.ts";
import { fetchInputs, type RolloutInputs } from "./inputs.ts";
import type { Slots } from "#platform/slots.ts";
import { startEncoding, type VideoEncoding } from "./video/encode.ts";

export interface RolloutJobParts {
  readonly manifest: Manifest;
  readonly blobs: BlobStore;
  readonly engine: Engine;
  readonly ffmpegPath: string;
  readonly encoderSlots: Slots;
  /** Local folder for videos in the making. */
  readonly workDir: string;
}

/** Why an attempt was told to end; the `reason` of its AbortSignal. */
export type EndReason = "cancelled" | "expired";

export interface Attempt {
  readonly id: JobId;
  readonly job: PredictJob;
  readonly alone: boolean;
  readonly signal: AbortSignal;
  /** Called with the frames generated so far, of all candidates together. */
  readonly onProgress: (frames: number) => void;
}

/** Throws BadInput, EngineFault, VideoError, or what the blob store threw. */
export async function runRolloutJob(attempt: Attempt, parts: RolloutJobParts): Promise<Outcome> {
  const { job, signal } = attempt;
  const { blobs } = parts;
  const startedAt = performance.now();
  const workDir = join(parts.workDir, attempt.id);
  await mkdir(workDir, { recursive: true });
  const videos: VideoEncoding[] = [];
  try {
    const inputs = await fetchInputs(blobs, job, parts.manifest);
    const fetchedAt = performance.now();
    if (signal.aborted) return outcomeOf(signal);

    const files = inputs.actions.map((_, candidate) => join(workDir, `${candidate}.mp4`));
    const engineWallMs = await dream(attempt, parts, inputs, files, videos);
    if (engineWallMs === null) return outcomeOf(signal);
    const dreamtAt = performance.now();

    const runId = randomUUID();
    const videoKeys: string[] = [];
    for (const [candidate, file] of files.entries()) {
      await videos[candidate]?.finish();
      const key = blobKeys.video(job.rollout_id, job.attempt, runId, candidate);
      await blobs.putFile(key, file);
      videoKeys.push(key);
    }
    const finishedAt = performance.now();
    const result: RolloutResult = {
      video_keys: videoKeys,
      frames: job.k * (job.actions_per_candidate + 1),
      timings: {
        engine_wall_ms: Math.round(engineWallMs),
        fetch_ms: Math.round(fetchedAt - startedAt),
        encode_ms: Math.round(finishedAt - dreamtAt),
        total_ms: Math.round(finishedAt - startedAt),
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
 * Runs the engine and feeds the encoders, which are added to `videos` as their candidates begin. Resolves with the
 * engine's wall time, or null when the attempt was told to end.
 */
async function dream(
  { id, job, alone, signal, onProgress }: Attempt,
  { engine, manifest, ffmpegPath, encoderSlots }: RolloutJobParts,
  { frame, actions }: RolloutInputs,
  files: readonly string[],
  videos: VideoEncoding[],
): Promise<number | null> {
  const { width, height, fps } = manifest.shapes;
  const broken = Promise.withResolvers<never>();
  broken.promise.catch(() => undefined); // nobody listens once the engine is done
  let framesDone = 0;
  let over = false;

  async function onFrames(candidate: number, frames: Uint8Array): Promise<void> {
    if (over) return;
    let video = videos[candidate];
    if (!video) {
      const file = files[candidate] ?? "";
      const options = { ffmpegPath, file, width, height, fps, slots: encoderSlots };
      video = startEncoding({ ...options, frames: job.actions_per_candidate + 1 });
      void video.failed.then(broken.reject);
      videos[candidate] = video;
      void video.write(frame);
    }
    framesDone += frames.byteLength / (width * height * 3);
    onProgress(framesDone);
    await video.write(frames);
  }

  const { seed, num_steps: numSteps, guidance, prompt } = job.params;
  const request = { id, seed: BigInt(seed), numSteps, guidance, prompt, alone, frame, actions };
  const submission = engine.submit(request, onFrames);
  const cancel = () => submission.cancel();
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
