/** Bundles in which several frames share one latent: shapes, positions and noise count latents, the API counts frames. */
import { expect, test } from "vitest";

import type { Manifest } from "#contract/manifest.ts";
import { rowTensorsOf } from "#workers/inference/engine/graphs.ts";
import { chunkNoise } from "#workers/inference/engine/philox.ts";
import { float32, floatsOf, type Tensors } from "#workers/inference/engine/tensor.ts";
import { warmUp } from "#workers/inference/engine/warm-up.ts";

import { createHarness, request } from "./support/loop-harness.ts";
import { createScriptedGraphs, runsOf } from "./support/scripted-graphs.ts";
import { SIDE, tinyManifest } from "./support/tiny-bundle.ts";

const FRAME_BYTES = SIDE * SIDE * 3;

/** Chunks of 12 frames in blocks of `blockFrames`, `c` of them in a latent. */
function manifestFor(blockFrames: number, c: number): Manifest {
  const manifest = tinyManifest();
  const shapes = { ...manifest.shapes, chunk_size: 12, block_frames: blockFrames, temporal_compression: c };
  return { ...manifest, shapes };
}

test("tensors have as many rows as latents, frames as many as frames", () => {
  const dims = Object.entries(rowTensorsOf(manifestFor(12, 4))).map(([name, tensor]) => [name, tensor.dims]);
  expect(Object.fromEntries(dims)).toMatchObject({
    noisy: [3, 1],
    denoised: [3, 1],
    latents: [4, 1],
    velocity: [3, 1],
    block_latents: [3, 1],
    actions: [12, 1],
    frames: [12, SIDE, SIDE, 3],
  });
});

test.each([
  [12, 4, [0]],
  [4, 4, [0, 1, 2]],
  [6, 2, [0, 3]],
  [4, 1, [0, 4, 8]],
])("blocks of %i frames at %i a latent stand at %j, and every frame comes out once", async (frames, c, positions) => {
  const manifest = manifestFor(frames, c);
  const harness = await createHarness({ manifest });
  const heads: Tensors[] = [];
  harness.graphs.beforeRun = (graph, { noisy, latents, position }) => {
    if (graph !== "denoiser_head" || !noisy || !latents || !position) return;
    heads.push({
      noisy: float32(noisy.dims, floatsOf(noisy).slice()),
      latents: float32(latents.dims, floatsOf(latents).slice()),
    });
  };
  harness.loop.submit(request("a", { actions: [new Float32Array(24)], numSteps: 1 }));
  await harness.finish("a");

  expect(runsOf(harness.graphs, "denoiser_body").flatMap(({ position }) => position)).toEqual([
    ...positions,
    ...positions,
  ]);
  const bytes = harness.events.flatMap((event) => (event.type === "frames" ? [event.frames.byteLength] : []));
  expect(bytes).toEqual(Array.from({ length: 24 / frames }, () => frames * FRAME_BYTES));

  // One step a block: its noisy input is the chunk's noise, which does not depend on the blocks.
  const noise = heads.flatMap(({ noisy }) => [...(noisy?.data ?? [])]);
  expect(noise).toEqual([...chunkNoise(1n, 0, 12 / c), ...chunkNoise(1n, 1, 12 / c)]);
  // A block sees the conditioning frame and the latents before it, and zeros after them.
  for (const [i, { latents }] of heads.slice(0, positions.length).entries()) {
    const known = [...(latents?.data ?? [])].map((value) => value !== 0);
    expect(known).toEqual(Array.from({ length: 12 / c + 1 }, (_, row) => row <= (positions[i] ?? 0)));
  }
});

test("such a bundle warms up", async () => {
  const manifest = manifestFor(12, 4);
  const graphs = createScriptedGraphs({ manifest });
  expect(await warmUp({ manifest, graphs, memory: null, now: () => 0 })).toMatchObject({ samplesMax: 4 });
});
