/** Each optimisation on and off: what runs, and that what comes out is the same. */
import { describe, expect, test } from "vitest";

import type { Manifest, OptimisationName } from "#contract/manifest.ts";
import { namesOf, specsOf } from "#workers/inference/engine/optimisations.ts";
import { readWorkerSettings } from "#workers/inference/settings.ts";

import {
  createHarness,
  type Harness,
  type HarnessOptions,
  latentsOf,
  marked,
  request,
} from "./support/loop-harness.ts";
import { runsOf } from "./support/scripted-graphs.ts";
import { CHUNK, tinyManifest } from "./support/tiny-bundle.ts";

const TEACACHE = { threshold: 0.5, coefficients: [1, 0] };
const PASSES = 2 * 2 * CHUNK; // two steps of each block of the two chunks that `request` asks for

function manifestWith(changes: Partial<Manifest["engine"]["optimisations"]>, unfused = false): Manifest {
  const manifest = tinyManifest();
  const { denoiser_body: body } = manifest.graphs;
  return {
    ...manifest,
    graphs: unfused ? { ...manifest.graphs, denoiser_body_unfused: body } : manifest.graphs,
    engine: { ...manifest.engine, optimisations: { ...manifest.engine.optimisations, ...changes } },
  };
}

describe("what is served", () => {
  const full = manifestWith({ teacache: TEACACHE }, true);
  test.each<[string, Manifest, readonly OptimisationName[] | undefined, readonly OptimisationName[]]>([
    [
      "everything that the bundle has",
      full,
      undefined,
      ["guidance_shortcut", "timestep_lut", "text_cache", "fused_qkv", "teacache"],
    ],
    ["what was asked for", full, ["text_cache", "teacache"], ["text_cache", "teacache"]],
    ["nothing", full, [], []],
    ["the fused body all the same where there is no other", manifestWith({}), [], ["fused_qkv"]],
    [
      "not what the bundle leaves out",
      manifestWith({ timestep_lut: false, text_cache: false }),
      undefined,
      ["guidance_shortcut", "fused_qkv"],
    ],
  ])("%s", (_, manifest, wanted, expected) => {
    expect(namesOf(specsOf(manifest, wanted).served)).toEqual(expected);
  });

  test("the base spec has none of them, but for what has no alternative, which is said", () => {
    const { base, fixed } = specsOf(full, undefined);
    expect([namesOf(base), fixed]).toEqual([[], []]);
    const tied = specsOf(manifestWith({}), undefined);
    expect([namesOf(tied.base), tied.fixed]).toEqual([["fused_qkv"], ["fused_qkv"]]);
  });

  test("what the bundle does not have is refused with what it has", () => {
    expect(() => specsOf(manifestWith({ text_cache: false }), ["teacache", "text_cache"])).toThrow(
      "tiny does not have teacache, text_cache; it has guidance_shortcut, timestep_lut, fused_qkv",
    );
  });

  test.each([
    [undefined, undefined],
    ["none", []],
    ["teacache, text_cache", ["text_cache", "teacache"]],
  ])("ENGINE_OPTIMISATIONS=%j is read as %j", (text, expected) => {
    const env = { MODEL: "tiny", ...(text === undefined ? {} : { ENGINE_OPTIMISATIONS: text }) };
    expect(readWorkerSettings(env).optimisations).toEqual(expected);
  });

  test.each(["tea", "none,teacache", "text_cache,"])("ENGINE_OPTIMISATIONS=%j is refused", (text) => {
    expect(() => readWorkerSettings({ MODEL: "tiny", ENGINE_OPTIMISATIONS: text })).toThrow(
      /ENGINE_OPTIMISATIONS: expected none, or a comma-separated list of guidance_shortcut, .*teacache, got/,
    );
  });
});

async function ran(options: HarnessOptions, changes: Parameters<typeof request>[1] = {}): Promise<Harness> {
  const harness = await createHarness(options);
  harness.graphs.runs.length = 0; // what creating the loop ran
  harness.loop.submit(request("a", { prompt: "x", actions: marked(5), ...changes }));
  await harness.finish("a");
  return harness;
}

const BUNDLE = { textKv: true, unfused: true };
const graphsRun = (harness: Harness) => new Set(harness.graphs.runs.map(({ graph }) => graph));

test("the base spec runs both passes, the timestep and K/V graphs and the unfused body at every step, bit for bit the same", async () => {
  const served = await ran(BUNDLE);
  const base = await ran(BUNDLE, { spec: "base" });

  expect(served.counters.runs).toMatchObject({
    timestep: 1,
    text_kv: 1 + 2,
    denoiser_body: PASSES,
    denoiser_body_unfused: 0,
  });
  expect(served.counters.rows).toMatchObject({ denoiser_head: PASSES, denoiser_body: PASSES, denoiser_tail: PASSES });
  expect(base.counters.runs).toMatchObject({ timestep: PASSES, denoiser_body: 0, denoiser_body_unfused: PASSES });
  expect(runsOf(base.graphs, "text_kv").map(({ rows }) => rows)).toEqual(Array.from({ length: PASSES }, () => 2));
  expect(base.counters.rows.denoiser_body_unfused).toBe(2 * PASSES);
  expect(latentsOf(base, 5)).toHaveLength(2 * CHUNK);
  expect(latentsOf(base, 5)).toEqual(latentsOf(served, 5));
});

/** Two rollouts of one prompt. */
async function twice(options: HarnessOptions): Promise<Harness> {
  const harness = await createHarness(options);
  for (const id of ["a", "b"]) harness.loop.submit(request(id, { prompt: "x" }));
  await harness.finish("a", "b");
  return harness;
}

/** With one optimisation. */
const on = (optimisation: OptimisationName, changes: Parameters<typeof request>[1] = {}) =>
  ran({ ...BUNDLE, optimisations: [optimisation] }, changes);

describe("alone on top of the base spec", () => {
  test("guidance_shortcut halves the rows at guidance 0, and only there", async () => {
    const plain = await on("guidance_shortcut");
    expect(plain.counters.rows.denoiser_body_unfused).toBe(PASSES);
    expect(plain.counters.guidance_rows_saved).toBe(PASSES);
    const guided = await on("guidance_shortcut", { guidance: 2 });
    expect(guided.counters.rows.denoiser_body_unfused).toBe(2 * PASSES);
    expect(guided.counters.guidance_rows_saved).toBe(0);
  });

  test("timestep_lut runs the timestep graph once a schedule and text_kv once a prompt", async () => {
    const { graphs, counters } = await on("timestep_lut");
    expect(runsOf(graphs, "timestep").map(({ rows }) => rows)).toEqual([2]);
    expect(runsOf(graphs, "text_kv").map(({ rows }) => rows)).toEqual([1, 1]); // the prompt, the null sequence
    expect(counters.timestep_lut_hits).toBe(2 * PASSES);
  });

  test("fused_qkv takes the fused body", async () => {
    const { graphs } = await on("fused_qkv");
    expect(runsOf(graphs, "denoiser_body")).toHaveLength(PASSES);
    expect(runsOf(graphs, "denoiser_body_unfused")).toEqual([]);
  });

  test("text_cache encodes a prompt once; without it every rollout does", async () => {
    const cached = await twice({ optimisations: ["text_cache"] });
    expect(cached.counters.runs.text_encoder).toBe(2 + 1); // "" and null at the start
    const uncached = await twice({ optimisations: ["guidance_shortcut"] });
    expect(uncached.counters.runs.text_encoder).toBe(2);
    expect(uncached.counters).toMatchObject({ text_cache_hits: 0, text_cache_misses: 2 });
  });

  test("teacache runs the head by itself", async () => {
    const manifest = manifestWith({ teacache: TEACACHE }, true);
    const harness = await ran({ ...BUNDLE, manifest, optimisations: ["teacache"] }, { numSteps: 6 });
    expect(harness.counters.teacache_rows_skipped).toBeGreaterThan(0);
    expect(graphsRun(harness)).toContain("denoiser_body_unfused");
  });
});

test("rollouts of the two specs are live at once, share what they can and never a forward of other graphs", async () => {
  const harness = await createHarness(BUNDLE);
  const one = { prompt: "x", numSteps: 3 };
  harness.loop.submit(request("served", { ...one, actions: marked(5) }));
  harness.loop.submit(request("base", { ...one, actions: marked(6), spec: "base", lane: "bulk" }));
  harness.loop.submit(request("other", { ...one, actions: marked(7), spec: "base", lane: "bulk" }));
  await harness.finish("served", "base", "other");
  const marks = (graph: "denoiser_body" | "denoiser_body_unfused") =>
    new Set(runsOf(harness.graphs, graph).flatMap(({ action }) => action));
  expect([marks("denoiser_body"), marks("denoiser_body_unfused")]).toEqual([new Set([5]), new Set([6, 7])]);
  expect(runsOf(harness.graphs, "denoiser_body_unfused").some(({ action }) => new Set(action).size === 2)).toBe(true);

  const alone = await ran(BUNDLE, { ...one, actions: marked(6), spec: "base" });
  expect(latentsOf(harness, 6)).toEqual(latentsOf(alone, 6));
});
