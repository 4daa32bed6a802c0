/** How close a video is to its reference, frame by frame: PSNR, SSIM and LPIPS (docs/quality.md says what each is). */
import { setImmediate as otherWork } from "node:timers/promises";

import type { Lpips } from "./lpips.ts";
import { psnrOf } from "./psnr.ts";
import { ssimOf } from "./ssim.ts";
import { framesOf, type VideoShape } from "./video-shape.ts";

/** One metric of a video. */
export interface Score {
  /** Of the frames' values. */
  readonly mean: number;
  readonly frames: readonly number[];
}

export interface VideoScore {
  /** dB, 0 … 100; higher is closer. */
  readonly psnr: Score;
  /** −1 … 1; higher is closer. */
  readonly ssim: Score;
  /** 0 … about 1; lower is closer. */
  readonly lpips: Score;
}

export interface VideoPair {
  readonly reference: Uint8Array;
  readonly candidate: Uint8Array;
  /** Of both. A rollout's start frame is given, not dreamed: without it the scores are of what the model made. */
  readonly shape: VideoShape;
  readonly lpips: Lpips;
  readonly signal?: AbortSignal;
}

/**
 * Scores every frame. Blocks the calling thread for one frame, or one LPIPS run, at a time. Throws VideoShapeError when the
 * two cannot be compared, LpipsModelError, or the signal's reason.
 */
export async function scoreVideos({ reference, candidate, shape, lpips, signal }: VideoPair): Promise<VideoScore> {
  const distances = await lpips.distances(reference, candidate, shape, signal); // refuses wrong shapes for all three
  const psnr: number[] = [];
  const ssim: number[] = [];
  for (let frame = 0; frame < shape.frames; frame++) {
    signal?.throwIfAborted();
    const [a, b] = [framesOf(reference, shape, frame, frame + 1), framesOf(candidate, shape, frame, frame + 1)];
    psnr.push(psnrOf(a, b));
    ssim.push(ssimOf(a, b, shape.height, shape.width));
    await otherWork();
  }
  return { psnr: scoreOf(psnr), ssim: scoreOf(ssim), lpips: scoreOf([...distances]) };
}

function scoreOf(frames: readonly number[]): Score {
  return { mean: frames.reduce((sum, value) => sum + value, 0) / frames.length, frames };
}
