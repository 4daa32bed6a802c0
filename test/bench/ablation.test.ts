/** The ablation's arithmetic: what is compared with what, and when the claim counts as missed. */
import { describe, expect, test } from "vitest";

import { createCounters } from "#workers/inference/engine/counters.ts";

import {
  ALL_OFF,
  ALL_ON,
  type Comparison,
  linesOf,
  rowsOf,
  type Turn,
  verdictsOf,
} from "../../bench/ablation/report.ts";
import { workBetween } from "../../bench/bundle-engine.ts";

const nothing = workBetween(createCounters(), createCounters());
const gate = { psnr_min: 30, ssim_min: 0.95, lpips_max: 0.05 };
/** Numbers whose means are exact. */
const close = { psnr: 40, ssim: 0.96875, lpips: 0.03125 };

const turn = (
  variant: string,
  engine_wall_ms: number,
  score: Omit<NonNullable<Turn["score"]>, "seed"> | null,
): Turn => ({
  variant,
  engine_wall_ms,
  work: nothing,
  score: score && { seed: 1n, ...score },
});

function comparisonOf(
  allMs: readonly number[],
  over: Partial<Comparison> = {},
  scores = allMs.map(() => close),
): Comparison {
  return {
    manifest: { slug: "scaled", gate },
    scaled: true,
    fixed: [],
    setting: { numSteps: 10, guidance: 0, chunks: 1 },
    // The base slows down from round to round, as on a machine that others use.
    rounds: allMs.map((ms, round) => [
      turn(ALL_OFF, 1000 * (round + 1), null),
      turn(ALL_ON, ms, scores[round] ?? close),
    ]),
    ...over,
  };
}

test("a speed-up is the median of each round's own ratio, not of the walls", () => {
  const [off, on] = rowsOf(comparisonOf([250, 500, 3000]));
  expect(off).toMatchObject({ engine_wall_ms: 2000, speed_up: 1, quality: null });
  expect(on).toMatchObject({ engine_wall_ms: 500, speed_up: 4, quality: close });
});

test("work and quality are means over the rounds", () => {
  const rounds = [3, 6].map((skipped) => [
    turn(ALL_OFF, 2, null),
    { ...turn(ALL_ON, 1, close), work: { ...nothing, skipped } },
  ]);
  expect(rowsOf({ rounds })[1]?.work.skipped).toBe(4.5);
});

describe("the claim", () => {
  test("holds at 2.5 times within the gate", () => {
    expect(verdictsOf([comparisonOf([400, 800])])).toMatchObject([{ holds: true, decides: true }]);
  });

  test.each([
    ["less than 2.5 times", comparisonOf([410])],
    ["one round of two outside the gate", comparisonOf([100, 100], {}, [close, { ...close, psnr: 29 }])],
    ["a distance that is no number", comparisonOf([100], {}, [{ ...close, lpips: Number.NaN }])],
    ["no gate to be within", comparisonOf([100], { manifest: { slug: "scaled" } })],
  ])("is missed by %s, and the report says so", (_, comparison) => {
    expect(verdictsOf([comparison])).toMatchObject([{ holds: false, decides: true }]);
    expect(linesOf([comparison]).join("\n")).toContain("**missed**");
  });

  test("is about the scaled layout, and decided without guidance", () => {
    const guided = comparisonOf([900], { setting: { numSteps: 10, guidance: 1.5, chunks: 1 } });
    expect(verdictsOf([guided])).toMatchObject([{ holds: false, decides: false }]);
    expect(verdictsOf([comparisonOf([900], { scaled: false })])).toEqual([]);
  });
});

test("what an engine did is what its counters grew by, both bodies together", () => {
  const [before, after] = [createCounters(), createCounters()];
  before.rows.denoiser_body = 5;
  after.rows.denoiser_body = 7;
  after.rows.denoiser_body_unfused = 20;
  after.runs.denoiser_body_unfused = 10;
  after.text_cache_hits = 2;
  after.text_cache_misses = 1;
  expect(workBetween(before, after)).toEqual({
    ...nothing,
    body_rows: 22,
    bodies: 10,
    text_hits: 2,
    text_lookups: 3,
  });
});
