/** The scores of two files of raw frames, as scoreVideos gives them, in memory for a few frames only. */
import { type FileHandle, open } from "node:fs/promises";

import type { Lpips } from "./lpips.ts";
import { type Score, scoreVideos, type VideoScore } from "./score-videos.ts";
import { type VideoShape, VideoShapeError } from "./video-shape.ts";

/** Of each file that are in memory at once, and at least one frame: the longest rollout at 640 × 480 has 220 MB. */
const BYTES_AT_ONCE = 16 * 2 ** 20;

export interface FilePair {
  /** Raw RGB frames, a byte a channel, one after the other, without a header. */
  readonly reference: string;
  readonly candidate: string;
  /** Of both. */
  readonly shape: VideoShape;
}

/** Throws VideoShapeError, LpipsModelError, or what reading a file threw. `bytesAtOnce` makes no difference to the scores. */
export async function scoreFiles(
  { reference, candidate, shape }: FilePair,
  lpips: Lpips,
  bytesAtOnce = BYTES_AT_ONCE,
): Promise<VideoScore> {
  await using a = await open(reference);
  await using b = await open(candidate);
  const frameBytes = shape.height * shape.width * 3;
  await assertSize(a, "reference", shape.frames * frameBytes);
  await assertSize(b, "candidate", shape.frames * frameBytes);
  const framesAtOnce = Math.max(1, Math.floor(bytesAtOnce / frameBytes));
  const parts: VideoScore[] = [];
  for (let start = 0; start < shape.frames; start += framesAtOnce) {
    const frames = Math.min(framesAtOnce, shape.frames - start);
    const part = (file: FileHandle) => readPart(file, start * frameBytes, frames * frameBytes);
    const [x, y] = await Promise.all([part(a), part(b)]);
    parts.push(await scoreVideos({ reference: x, candidate: y, shape: { ...shape, frames }, lpips }));
  }
  return { psnr: joined(parts, "psnr"), ssim: joined(parts, "ssim"), lpips: joined(parts, "lpips") };
}

async function assertSize(file: FileHandle, name: string, expected: number): Promise<void> {
  const { size } = await file.stat();
  if (size !== expected) throw new VideoShapeError(`the ${name} has ${size} bytes, expected ${expected}`);
}

/** A read of a file may give less than was asked for. */
async function readPart(file: FileHandle, position: number, length: number): Promise<Uint8Array> {
  const part = new Uint8Array(length);
  for (let done = 0; done < length;) {
    const { bytesRead } = await file.read(part, done, length - done, position + done);
    if (bytesRead === 0) throw new VideoShapeError("a file became shorter while it was read");
    done += bytesRead;
  }
  return part;
}

function joined(parts: readonly VideoScore[], metric: keyof VideoScore): Score {
  const frames = parts.flatMap((part) => part[metric].frames);
  return { mean: frames.reduce((sum, value) => sum + value, 0) / frames.length, frames };
}
