import { expect, test } from "vitest";

import { normaliseActions } from "#workers/inference/engine/sample.ts";
import { eulerStep, guide, schedule } from "#workers/inference/engine/sampler.ts";
import { tokenize } from "#workers/inference/engine/text.ts";

test("the schedule runs from 1 to 0, evenly without a shift", () => {
  expect([...schedule(4, 1)]).toEqual([1, 0.75, 0.5, 0.25, 0]);
});

test("a shift of 5 keeps more of the steps near the noise", () => {
  expect([...schedule(2, 5)]).toEqual([1, Math.fround(2.5 / 3), 0]);
});

test("an Euler step moves against the velocity, in float32", () => {
  const x = Float32Array.of(1, -0.3);
  const v = Float32Array.of(0.1, 0.7);
  expect([...eulerStep(x, v, 1, 0.5)]).toEqual([
    Math.fround(1 - Math.fround(0.05)),
    Math.fround(Math.fround(-0.3) - Math.fround(0.5 * Math.fround(0.7))),
  ]);
});

test("guidance 0 is the conditional prediction, 1 moves as far again away from the unconditional one", () => {
  const cond = Float32Array.of(1, 2);
  const uncond = Float32Array.of(0.5, 3);
  expect([...guide(cond, uncond, 0)]).toEqual([1, 2]);
  expect([...guide(cond, uncond, 1)]).toEqual([1.5, 1]);
});

test("actions are normalised dimension by dimension", () => {
  const actions = Float32Array.of(256, 0, 512, 128);
  expect([...normaliseActions(actions, { offset: [256, 0], scale: [256, 64], unit: "" })]).toEqual([0, 0, 1, 2]);
});

test.each([
  ["", [1], 4],
  ["ab", [1, 100, 101], 4],
  ["é", [1, 0xc3 + 3, 0xa9 + 3], 4],
  ["abcdef", [1, 100, 101, 102], 4],
  [null, [2], 4],
])("tokenizes %j as %j, padded to the length of the model", (prompt, tokens, length) => {
  const { ids, mask } = tokenize(prompt, length);
  const padding = Array.from<number>({ length: length - tokens.length }).fill(0);
  expect(Array.from(ids, Number)).toEqual([...tokens, ...padding]);
  expect([...mask]).toEqual([...tokens.map(() => 1), ...padding]);
});
