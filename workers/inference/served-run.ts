/** The run whose videos the customer gets: the engine's frames go to the encoders while the next are being dreamed. */
import type { Manifest } from "#contract/manifest.ts";
import type { Slots } from "#platform/slots.ts";

import { runEngine } from "./engine-run.ts";
import type { Engine } from "./engine/engine.ts";
import type { EngineRequest } from "./engine/loop.ts";
import type { RawFile } from "./scored-run.ts";
import type { Encoder } from "./video/encoder.ts";
import { startEncoding, type VideoEncoding } from "./video/encode.ts";

export interface ServedRunParts {
  readonly manifest: Manifest;
  readonly engine: Engine;
  readonly encoder: Encoder;
  readonly encoderSlots: Slots;
  /** Samples that a lane may have in the engine. */
  readonly samplesMax: number;
}

export interface ServedRun {
  readonly request: EngineRequest;
  /** Of each video, with the start frame. */
  readonly framesPerVideo: number;
  /** One video a candidate. */
  readonly files: readonly string[];
  /** Gets the generated frames of a scored rollout, which has one candidate. */
  readonly raw: RawFile | null;
  /** Called with the frames generated so far, of all candidates together. */
  readonly onProgress: (frames: number) => void;
  readonly signal: AbortSignal;
}

/**
 * Feeds the encoders, which are added to `videos`: those of the candidates that the engine takes at once are there before
 * it has anything to give, those of later waves begin as their candidates do. As runEngine; rejects VideoError, too.
 */
export async function runServed(
  { request, framesPerVideo, files, raw, onProgress, signal }: ServedRun,
  { manifest, engine, encoder, encoderSlots, samplesMax }: ServedRunParts,
  videos: VideoEncoding[],
): Promise<number | null> {
  const { width, height, fps } = manifest.shapes;
  const broken = Promise.withResolvers<never>();
  broken.promise.catch(() => undefined); // nobody listens once the engine is done
  let framesDone = 0;

  function startVideo(candidate: number): VideoEncoding {
    const file = files[candidate] ?? "";
    const options = { encoder, file, width, height, fps, slots: encoderSlots, yields: request.lane === "bulk" };
    const video = startEncoding({ ...options, frames: framesPerVideo });
    void video.failed.then(broken.reject);
    void video.write(request.frame);
    videos[candidate] = video;
    return video;
  }

  async function onFrames(candidate: number, frames: Uint8Array): Promise<void> {
    const video = videos[candidate] ?? startVideo(candidate);
    framesDone += frames.byteLength / (width * height * 3);
    onProgress(framesDone);
    await Promise.all([video.write(frames), raw?.write(frames)]);
  }

  for (let candidate = 0; candidate < Math.min(files.length, samplesMax); candidate++) startVideo(candidate);
  return runEngine(engine, { request, onFrames, signal, broken: broken.promise });
}
