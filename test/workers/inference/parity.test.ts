/** The TypeScript engine on the exported graphs against the Python reference pipeline on the whole torch model. */
import { beforeAll, describe, expect, test } from "vitest";

import type { Manifest } from "#contract/manifest.ts";
import { loadManifests } from "#platform/bundles.ts";
import { createCounters } from "#workers/inference/engine/counters.ts";
import type { Graphs } from "#workers/inference/engine/graphs.ts";
import { createLoop } from "#workers/inference/engine/loop.ts";
import { openOnnxGraphs } from "#workers/inference/engine/onnx.ts";
import { specsOf } from "#workers/inference/engine/optimisations.ts";
import { guide } from "#workers/inference/engine/sampler.ts";
import { floatsOf, type Tensors } from "#workers/inference/engine/tensor.ts";

import {
  frameErrors,
  golden,
  goldenFrames,
  goldenRequest,
  type GoldenRollout,
  goldenTensor,
} from "./support/golden.ts";

let manifest: Manifest;
let graphs: Graphs;

beforeAll(async () => {
  const found = (await loadManifests("models")).find(({ slug }) => slug === golden.bundle);
  if (!found) throw new Error(`no bundle ${golden.bundle}`);
  manifest = found;
  graphs = await openOnnxGraphs({ bundleDir: `models/${golden.bundle}`, manifest, providers: ["cpu"] });
});

test("the golden tensors were made with the weights of the bundle", () => {
  const sums = Object.entries(manifest.graphs).map(([graph, { sha256 }]) => [graph, sha256]);
  expect(Object.fromEntries(sums)).toEqual(golden.bundle_graphs);
});

/** Runs one rollout and keeps what every graph gave. */
async function dream(rollout: GoldenRollout): Promise<{ frames: Uint8Array; outputs: Record<string, Float32Array[]> }> {
  const outputs: Record<string, Float32Array[]> = {};
  const recording: Graphs = {
    ...graphs,
    async run(graph, inputs) {
      const result: Tensors = await graphs.run(graph, inputs);
      for (const [name, tensor] of Object.entries(result)) {
        if (tensor.type === "float32") (outputs[name] ??= []).push(floatsOf(tensor).slice());
      }
      return result;
    },
  };
  const request = await goldenRequest(rollout);
  const parts: Uint8Array[] = [request.frame];
  const loop = await createLoop({
    manifest,
    graphs: recording,
    rowLimits: {
      rowsMax: manifest.engine.max_batch_samples,
      rowsWorth: manifest.engine.max_batch_samples,
      fillTo: {},
    },
    specs: specsOf(manifest, undefined),
    counters: createCounters(),
    emit(event) {
      if (event.type !== "frames") return loop.stop();
      parts.push(event.frames);
      loop.taken(event.id, event.candidate, 1);
    },
    onRun: () => undefined,
    onBusy: () => undefined,
    now: () => performance.now(),
  });
  loop.submit(request);
  await loop.run();
  return { frames: Buffer.concat(parts), outputs };
}

const worstOf = (a: Float32Array, b: Float32Array): number =>
  b.reduce((worst, value, i) => Math.max(worst, Math.abs((a[i] ?? Number.NaN) - value)), 0);

const flat = (arrays: readonly Float32Array[]): Float32Array =>
  Float32Array.from(arrays.flatMap((array) => [...array]));

describe.each(golden.rollouts)("golden rollout $name", (rollout) => {
  test("frames and tensors agree with the reference within the stated tolerance", async () => {
    const { frames, outputs } = await dream(rollout);
    const { first_chunk_tensor_abs: tensorMax, frame_mean_abs_levels: levelsMax } = golden.tolerance;
    const { height, width, chunk_size: chunkSize } = manifest.shapes;

    const expected = await goldenFrames(rollout);
    const errors = frameErrors(frames, expected, height * width * 3);
    expect(frames).toHaveLength(expected.length);
    expect(Math.max(...errors)).toBeLessThanOrEqual(Math.min(levelsMax, 1));

    // Later chunks start from 8-bit pixels, where one level of rounding moves everything: tensors of the first only.
    const perFrame = manifest.shapes.latent_shape.reduce((size, dim) => size * dim, 1);
    const latent = goldenTensor(rollout, "latent").subarray(0, perFrame);
    expect(worstOf(outputs["latent"]?.[0] ?? latent.map(() => NaN), latent)).toBeLessThanOrEqual(tensorMax);

    const blockLatents = goldenTensor(rollout, "block_latents").subarray(0, chunkSize * perFrame);
    expect(worstOf(flat(outputs["block_latents"] ?? []), blockLatents)).toBeLessThanOrEqual(tensorMax);

    const velocities = goldenTensor(rollout, "velocities");
    const given = (outputs["velocity"] ?? []).slice(0, chunkSize * rollout.num_steps).map((velocity) => {
      const half = velocity.length / 2;
      return rollout.guidance === 0
        ? velocity
        : guide(velocity.subarray(0, half), velocity.subarray(half), rollout.guidance);
    });
    expect(worstOf(flat(given), velocities)).toBeLessThanOrEqual(tensorMax);

    const worstVelocity = worstOf(flat(given), velocities).toExponential(1);
    console.log(`parity ${rollout.name}: frame ${Math.max(...errors).toFixed(4)} levels, velocity ${worstVelocity}`);
  });
});
