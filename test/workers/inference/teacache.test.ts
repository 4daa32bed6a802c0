/** TeaCache, its decisions as arithmetic and its life among the batches of the loop. */
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";

import type { Manifest } from "#contract/manifest.ts";
import type { EngineRequest } from "#workers/inference/engine/loop.ts";
import {
  relativeChange,
  rescale,
  residualOf,
  reuseResidual,
  watch,
  type Watched,
} from "#workers/inference/engine/teacache.ts";
import type { Tensors } from "#workers/inference/engine/tensor.ts";

import { createHarness, framesOf, type Harness, latentsOf, marked, request } from "./support/loop-harness.ts";
import { runsOf } from "./support/scripted-graphs.ts";
import { CHUNK, tinyManifest } from "./support/tiny-bundle.ts";

const IDENTITY = [1, 0];

/** One letter a step: C computed, r reused. The modulated input is one number. */
function decisions(inputs: readonly number[], threshold: number, coefficients: readonly number[] = IDENTITY): string {
  let seen: Watched | null = null;
  return inputs
    .map((value, step) => {
      const place = { step, steps: inputs.length };
      const { reuse, after } = watch(seen, Float32Array.of(value), place, {
        threshold,
        coefficients: [...coefficients],
      });
      seen = after;
      return reuse ? "r" : "C";
    })
    .join("");
}

describe("the decision", () => {
  test.each<[string, readonly number[], number, readonly number[], string]>([
    ["computes the first and the last step, whatever does not change", [1, 1, 1, 1, 1], 0.1, IDENTITY, "CrrrC"],
    ["has nothing to skip in two steps", [1, 1], 0.1, IDENTITY, "CC"],
    ["computes the only step", [1], 0.1, IDENTITY, "C"],
    ["adds up small changes until they matter", [16, 17, 18, 19, 20, 21, 22], 0.15, IDENTITY, "CrrCrrC"],
    [
      "compares with the step before, not with the one that was computed",
      [10, 11, 10, 11, 10, 11, 11],
      0.25,
      IDENTITY,
      "CrrCrrC",
    ],
    ["is not under the threshold when it is at it", [4, 5, 5, 5], 0.25, IDENTITY, "CCrC"],
    ["rescales by the polynomial, highest power first", [4, 5, 5, 5], 0.25, [2, 0, 0.1], "CrCC"],
    ["does not let a negative value of it take change back", [10, 11, 12.1, 13.31, 13.31], 0.15, [1, -0.05], "CrrCC"],
    ["computes when silence begins to change, or lasts", [0, 0, 1, 1], 0.5, IDENTITY, "CCCC"],
  ])("%s", (_, inputs, threshold, coefficients, expected) => {
    expect(decisions(inputs, threshold, coefficients)).toBe(expected);
  });

  test("a change is relative to the whole input before it", () => {
    expect(relativeChange(Float32Array.of(1, -1, 4), Float32Array.of(1, 1, 2))).toBe(1);
  });

  test("the polynomial is numpy's polyval, at least 0", () => {
    expect(rescale(2, [3, 2, 1])).toBe(17);
    expect(rescale(2, [-3, 2, 1])).toBe(0);
  });

  test("first and last are always computed; a higher threshold never computes sooner after a computed step", () => {
    const inputs = fc.array(fc.float({ min: Math.fround(0.5), max: 2, noNaN: true }), { minLength: 2, maxLength: 40 });
    fc.assert(
      fc.property(inputs, fc.double({ min: 0.001, max: 1, noNaN: true }), (values, threshold) => {
        const made = decisions(values, threshold);
        expect([made.at(0), made.at(-1)]).toEqual(["C", "C"]);
        expect(decisions(values, threshold * 2).indexOf("C", 1)).toBeGreaterThanOrEqual(made.indexOf("C", 1));
      }),
    );
  });

  test("a residual is what the body added, and adding it again is what stands in for the body", () => {
    const residual = residualOf(Float32Array.of(3, 1), Float32Array.of(1, 2));
    expect([...residual]).toEqual([2, -1]);
    expect([...reuseResidual(Float32Array.of(10, 20), residual)]).toEqual([12, 19]);
  });
});

/** The scripted model's modulated input changes smoothly with t, the faster the larger the action. */
function manifestWith(threshold: number): Manifest {
  const manifest = tinyManifest();
  const optimisations = { ...manifest.engine.optimisations, teacache: { threshold, coefficients: IDENTITY } };
  return { ...manifest, engine: { ...manifest.engine, optimisations } };
}
const STEPS = 10;
const sample = (id: string, mark: number, changes: Partial<EngineRequest> = {}): EngineRequest =>
  request(id, { numSteps: STEPS, actions: marked(mark), seed: BigInt(4 * mark), ...changes });

/** The steps (by t) at which the body ran for the sample with this mark. */
const computedAt = ({ graphs }: Harness, mark: number): number[] =>
  runsOf(graphs, "denoiser_body").flatMap(({ action, t }) => t.filter((_, row) => action[row] === mark));

async function dream(requests: readonly EngineRequest[], threshold = 0.15): Promise<Harness> {
  const harness = await createHarness({ manifest: manifestWith(threshold) });
  for (const one of requests) harness.loop.submit(one);
  await harness.finish(...requests.map(({ id }) => id));
  return harness;
}

const rowsIn = (tensors: Tensors, name: string): number[] => Array.from(tensors[name]?.data ?? [], Number);

describe("in the loop", () => {
  test("skipping passes run head and tail alone, others' bodies go on without them", async () => {
    const { counters, graphs } = await dream([sample("slow", 0.25), sample("fast", 3)]);
    const rows = 2 * 2 * CHUNK * STEPS;
    expect(counters.rows.denoiser_head).toBe(rows);
    expect(counters.rows.denoiser_tail).toBe(rows);
    expect(counters.rows.denoiser_body).toBe(counters.teacache_rows_computed);
    expect(counters.teacache_rows_computed + counters.teacache_rows_skipped).toBe(rows);
    expect(counters.teacache_rows_skipped).toBeGreaterThan(rows / 4);
    const bodies = runsOf(graphs, "denoiser_body");
    expect(bodies.some((run) => run.rows === 1)).toBe(true);
    expect(bodies.some((run) => run.rows === 2)).toBe(true);
  });

  test("all that need a body have it together: heads of the others come before it", async () => {
    const { graphs } = await dream([sample("slow", 0.25), sample("fast", 3)]);
    // One of them skips more: where it comes to need its body, the other waits for it, or is at its own.
    const first = runsOf(graphs, "denoiser_body").slice(0, 3);
    expect(first[0]?.t).toEqual([1, 1]); // the first step of both
    expect(first.slice(1).every(({ rows }) => rows === 2)).toBe(true);
  });

  test("decisions and numbers are the same alone, in a full batch, joined late, and parked", async () => {
    const one = sample("one", 1, { lane: "bulk", guidance: 1.5, prompt: "x" });
    const alone = await dream([one]);
    const neighbours = [0.25, 3, 8].map((mark) => sample(`n${mark}`, mark, { numSteps: 7 }));
    const batched = await dream([one, ...neighbours]);

    const late = await createHarness({
      manifest: manifestWith(0.15),
      onEvent: (event) => {
        if (event.type === "frames" && event.id === "n3" && framesOf(late, "n3").length === 1) late.loop.submit(one);
      },
    });
    for (const neighbour of neighbours) late.loop.submit(neighbour);
    await late.finish("one", "n3");

    // Three guided neighbours in the realtime lane leave it no row.
    const crowd = [0.25, 3].map((mark) => sample(`c${mark}`, mark, { guidance: 1, actions: marked(mark, 4) }));
    const parked = await dream([one, ...crowd]);
    expect(parked.counters.samples_parked).toBeGreaterThan(0);

    for (const harness of [batched, late, parked]) {
      expect(computedAt(harness, 1)).toEqual(computedAt(alone, 1));
      expect(latentsOf(harness, 1)).toEqual(latentsOf(alone, 1));
    }
    expect(computedAt(alone, 1).length).toBeLessThan(2 * 2 * CHUNK * STEPS);
  });

  test("the conditional and the unconditional pass skip on their own", async () => {
    const harness = await createHarness({ manifest: manifestWith(0.15) });
    const run = harness.graphs.run.bind(harness.graphs);
    // The null sequence's pass sees an input that does not move; the conditional one's does.
    harness.graphs.run = async (graph, inputs) => {
      const outputs = await run(graph, inputs);
      if (graph === "denoiser_head") outputs["modulated"]?.data.fill(1 as never, 1);
      return outputs;
    };
    harness.loop.submit(sample("a", 3, { guidance: 1 }));
    await harness.finish("a");
    const rows = runsOf(harness.graphs, "denoiser_body").map(({ text }) => text);
    expect(rows.filter((texts) => texts.length === 2)).toHaveLength(2 * 2 * CHUNK); // the first and the last of a block
    expect(rows.filter((texts) => texts.length === 1).every(([text]) => text !== 2)).toBe(true);
    expect(rows.some((texts) => texts.length === 1)).toBe(true);
  });

  test("each pass reuses what the body last added to its own tokens", async () => {
    const harness = await createHarness({ manifest: manifestWith(0.15) });
    const run = harness.graphs.run.bind(harness.graphs);
    let tokens: number[] = [];
    let added: number[] = [];
    let isReused = true;
    const reused: boolean[] = [];
    harness.graphs.run = async (graph, inputs) => {
      const outputs = await run(graph, inputs);
      if (graph === "denoiser_head") tokens = rowsIn(outputs, "tokens");
      if (graph === "denoiser_body") added = rowsIn(outputs, "tokens_out").map((out, i) => out - (tokens[i] ?? 0));
      if (graph === "denoiser_tail" && isReused) {
        reused.push(
          rowsIn(inputs, "tokens_out").every(
            (out, i) => Math.abs(out - (tokens[i] ?? Number.NaN) - (added[i] ?? Number.NaN)) < 1e-5,
          ),
        );
      }
      isReused = graph !== "denoiser_body";
      return outputs;
    };
    harness.loop.submit(sample("a", 1, { guidance: 1.5, prompt: "x" }));
    await harness.finish("a");
    expect(new Set(added).size).toBe(2); // the passes', which differ by their text
    expect(reused.length).toBeGreaterThan(2 * CHUNK);
    expect(new Set(reused)).toEqual(new Set([true]));
  });

  test("skips as it does in one batch where a guided sample's passes do not fit one", async () => {
    const one = sample("a", 1, { guidance: 1.5, prompt: "x" });
    const wide = await dream([one]);
    const manifest = manifestWith(0.15);
    const narrow = await createHarness({
      manifest: { ...manifest, engine: { ...manifest.engine, max_batch_samples: 1 } },
    });
    narrow.loop.submit(one);
    await narrow.finish("a");
    expect(runsOf(narrow.graphs, "denoiser_body").every(({ rows }) => rows === 1)).toBe(true);
    expect(narrow.counters.teacache_rows_skipped).toBe(wide.counters.teacache_rows_skipped);
    expect(latentsOf(narrow, 1)).toEqual(latentsOf(wide, 1));
  });

  test("a threshold that nothing stays under gives exactly what no TeaCache gives", async () => {
    const requests = [sample("a", 1), sample("b", 3, { guidance: 2 })];
    const never = await dream(requests, Number.MIN_VALUE);
    const without = await createHarness();
    for (const one of requests) without.loop.submit(one);
    await without.finish("a", "b");
    expect(never.counters.teacache_rows_skipped).toBe(0);
    for (const mark of [1, 3]) expect(latentsOf(never, mark)).toEqual(latentsOf(without, mark));
  });

  test("skipping changes what comes out by little, and by something", async () => {
    const [skipping, full] = [await dream([sample("a", 1)]), await dream([sample("a", 1)], Number.MIN_VALUE)];
    const errors = latentsOf(skipping, 1).map((value, i) => Math.abs(value - (latentsOf(full, 1)[i] ?? Number.NaN)));
    expect(Math.max(...errors)).toBeLessThan(0.2);
    expect(Math.max(...errors)).toBeGreaterThan(0);
  });

  test("a new block forgets: its first step is computed", async () => {
    const harness = await dream([sample("a", 0.25)], 100);
    // Nothing but the first and the last step of each block.
    expect(computedAt(harness, 0.25)).toEqual(
      Array.from({ length: 2 * CHUNK }, () => [1, Math.fround(1 / STEPS)]).flat(),
    );
  });
});
