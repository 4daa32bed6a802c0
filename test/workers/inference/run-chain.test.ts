import { expect, test } from "vitest";

import { createCounters } from "#workers/inference/engine/counters.ts";
import { createRunChain } from "#workers/inference/engine/run-chain.ts";
import { float32, type Tensors } from "#workers/inference/engine/tensor.ts";

import { createScriptedGraphs } from "./support/scripted-graphs.ts";

const row = (value: number): Tensors => ({ t: float32([], Float32Array.of(value)) });

test("a batch holds the rows it was given, whatever was stacked under the name before", async () => {
  const graphs = createScriptedGraphs();
  const runChain = createRunChain(graphs, createCounters(), () => undefined);
  const rows = [1, 2, 3].map(row);
  const given = async (some: readonly Tensors[]) => {
    const { t_rows: tRows } = await runChain(["timestep"], some);
    return [...(tRows?.data ?? [])];
  };
  expect(await given(rows)).toEqual([1, 2, 3]);
  expect(await given(rows.slice(1))).toEqual([2, 3]);
  expect(await given(rows)).toEqual([1, 2, 3]);
  expect(await given([...rows, row(4)])).toEqual([1, 2, 3, 4]);
  expect(await given(rows.toReversed())).toEqual([3, 2, 1]);
});

test("a batch of one is its row, uncopied", async () => {
  const graphs = createScriptedGraphs();
  const runChain = createRunChain(graphs, createCounters(), () => undefined);
  const one = row(1);
  let isUncopied = false;
  graphs.beforeRun = (_, { t }) => {
    isUncopied = t?.data.buffer === one["t"]?.data.buffer && t?.dims.join() === "1";
  };
  await runChain(["timestep"], [one]);
  expect(isUncopied).toBe(true);
});

test("a row without a tensor that a graph takes is told by both names", async () => {
  const runChain = createRunChain(createScriptedGraphs(), createCounters(), () => undefined);
  await expect(runChain(["timestep"], [{}])).rejects.toThrow("timestep takes t, which this sample does not have");
});
