import { afterAll, expect, test } from "vitest";

import { createLpips } from "#workers/inference/score/lpips.ts";
import { scoreVideos } from "#workers/inference/score/score-videos.ts";

import { concat, texture, withNoise } from "./support/frames.ts";

/** The frame that is the same in both videos. */
const NOISELESS = 2;
const SHAPE = { frames: 6, height: 64, width: 72 };
const lpips = createLpips({ model: "models/lpips/lpips-alex.json", providers: ["cpu"] });
afterAll(() => lpips.release());

const reference = concat(Array.from({ length: SHAPE.frames }, (_, i) => texture(SHAPE.height, SHAPE.width, i)));
const candidate = concat(
  Array.from({ length: SHAPE.frames }, (_, i) =>
    withNoise(texture(SHAPE.height, SHAPE.width, i), i === NOISELESS ? 0 : 4 * (i + 1), 50 + i),
  ),
);
const score = (a: Uint8Array, b: Uint8Array) => scoreVideos({ reference: a, candidate: b, shape: SHAPE, lpips });

const falling = (values: readonly number[]) => values.toSorted((a, b) => b - a);
const noisyOnes = (frames: readonly number[]) => frames.filter((_, i) => i !== NOISELESS);
const all = (value: number) => ({ mean: value, frames: Array.from({ length: SHAPE.frames }, () => value) });

test("a video is its own best score in every frame, and the score survives JSON", async () => {
  const scored = await score(reference, reference.slice());
  expect(scored).toEqual({ psnr: all(100), ssim: all(1), lpips: all(0) });
  expect(JSON.parse(JSON.stringify(scored))).toEqual(scored);
});

test("each frame is scored against the one in its place, and the mean is that of the frames", async () => {
  const { psnr, ssim, lpips } = await score(reference, candidate);
  for (const { mean, frames } of [psnr, ssim, lpips]) {
    expect(frames).toHaveLength(SHAPE.frames);
    expect(mean).toBeCloseTo(
      frames.reduce((sum, value) => sum + value / frames.length, 0),
      10,
    );
  }
  expect([psnr, ssim, lpips].map(({ frames }) => frames[NOISELESS])).toEqual([100, 1, 0]);
  expect(noisyOnes(psnr.frames)).toEqual(falling(noisyOnes(psnr.frames)));
  expect(noisyOnes(ssim.frames)).toEqual(falling(noisyOnes(ssim.frames)));
  expect(Math.max(...psnr.frames.slice(3))).toBeLessThan(30);
});

test("the thread's other work goes on while a video is scored", async () => {
  let turns = 0;
  const other = setInterval(() => turns++, 0);
  await score(reference, candidate);
  clearInterval(other);
  expect(turns).toBeGreaterThanOrEqual(SHAPE.frames / 2);
});

test("two videos scored at the same time do not disturb each other", async () => {
  const alone = [await score(reference, candidate), await score(candidate, reference)];
  expect(await Promise.all([score(reference, candidate), score(candidate, reference)])).toEqual(alone);
});

test("a video of another shape is refused before anything is scored", async () => {
  await expect(score(reference, candidate.subarray(SHAPE.width * 3))).rejects.toThrow(
    "the candidate has 82728 bytes, expected 82944: 6 frames of 64 × 72 in RGB",
  );
});

test("scoring stops between two frames when its caller gives up", async () => {
  const giveUp = new AbortController();
  const reason = new Error("the rollout was cancelled");
  const scored = scoreVideos({ reference, candidate, shape: SHAPE, lpips, signal: giveUp.signal });
  setImmediate(() => giveUp.abort(reason));
  await expect(scored).rejects.toBe(reason);
});
