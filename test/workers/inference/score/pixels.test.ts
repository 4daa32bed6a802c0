/** What PSNR and SSIM promise beyond single values; the values themselves are in golden.test.ts. */
import { describe, expect, test } from "vitest";

import { PSNR_MAX_DB, psnrOf } from "#workers/inference/score/psnr.ts";
import { SSIM_SIDE_MIN, ssimOf } from "#workers/inference/score/ssim.ts";

import { texture, withNoise } from "./support/frames.ts";

const [HEIGHT, WIDTH] = [40, 56];
const ssim = (a: Uint8Array, b: Uint8Array) => ssimOf(a, b, HEIGHT, WIDTH);

describe.each([
  { metric: "PSNR", of: psnrOf, best: PSNR_MAX_DB },
  { metric: "SSIM", of: ssim, best: 1 },
])("$metric", ({ of, best }) => {
  test.each([1, 2, 3])("is exactly the best for a frame and itself (texture %i)", (seed) => {
    const frame = texture(HEIGHT, WIDTH, seed);
    expect(of(frame, frame.slice())).toBe(best);
  });

  test.each([1, 2, 3])("is the same the other way round, to the last bit (texture %i)", (seed) => {
    const frame = texture(HEIGHT, WIDTH, seed);
    const noisy = withNoise(frame, 20, seed + 10);
    expect(of(frame, noisy)).toBe(of(noisy, frame));
    expect(of(frame, noisy)).toBeLessThan(best);
  });

  test("falls with every further doubling of the noise", () => {
    const frame = texture(HEIGHT, WIDTH, 4);
    const values = [1, 2, 4, 8, 16, 32, 64].map((sigma) => of(frame, withNoise(frame, sigma, 5)));
    expect(values).toEqual(values.toSorted((a, b) => b - a));
    expect(new Set(values).size).toBe(values.length);
  });

  test("sees a difference in one channel alone, the same in each of the three", () => {
    const grey = new Uint8Array(HEIGHT * WIDTH * 3).fill(100);
    const [red, green, blue] = [0, 1, 2].map((channel) =>
      of(
        grey,
        grey.map((level, i) => (i % 3 === channel ? level + 9 + (i % 2) : level)),
      ),
    );
    expect(red).toBeLessThan(best);
    expect(green).toBeCloseTo(red ?? Number.NaN, 12);
    expect(blue).toBeCloseTo(red ?? Number.NaN, 12);
  });
});

test("PSNR is capped where a single level of a large frame would pass the cap", () => {
  const frame = new Uint8Array(480 * 640 * 3).fill(7);
  const other = frame.with(1_000, 8); // 107.8 dB by the formula
  expect(psnrOf(frame, other)).toBe(PSNR_MAX_DB);
});

test("PSNR of one level everywhere is 20·log10(255)", () => {
  expect(psnrOf(new Uint8Array(300).fill(7), new Uint8Array(300).fill(8))).toBeCloseTo(20 * Math.log10(255), 12);
});

test("SSIM of frames as small as its window is one place's index, and of smaller ones a programmer's error", () => {
  const frame = texture(SSIM_SIDE_MIN, SSIM_SIDE_MIN, 1);
  expect(ssimOf(frame, withNoise(frame, 30, 2), SSIM_SIDE_MIN, SSIM_SIDE_MIN)).toBeLessThan(1);
  expect(() => ssimOf(frame, frame, SSIM_SIDE_MIN - 1, SSIM_SIDE_MIN)).toThrow("frames of 10 × 11 are smaller");
});

test("SSIM falls below 0 where one frame is the other's negative", () => {
  const frame = texture(HEIGHT, WIDTH, 6);
  const negative = frame.map((level) => 255 - level);
  expect(ssim(frame, negative)).toBeLessThan(0);
  expect(ssim(frame, negative)).toBeGreaterThanOrEqual(-1);
});
