import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { afterEach, beforeEach, expect, test } from "vitest";

import type { GraphName } from "#contract/manifest.ts";
import { loadManifests } from "#platform/bundles.ts";
import { checkBundle } from "#workers/inference/engine/graphs.ts";
import { openOnnxGraphs } from "#workers/inference/engine/onnx.ts";
import { warmUp, warmUpSizes } from "#workers/inference/engine/warm-up.ts";

import type { GraphSpec } from "./support/onnx-writer.ts";
import { TINY_GRAPHS, writeTinyBundle } from "./support/tiny-bundle.ts";

let modelsDir: string;
beforeEach(async () => {
  modelsDir = await mkdtemp(join(tmpdir(), "dream-engine-test-bundle-"));
});
afterEach(() => rm(modelsDir, { recursive: true, force: true }));

const providers = ["cpu"];

function specOf(graph: GraphName): GraphSpec {
  const spec = TINY_GRAPHS[graph];
  if (!spec) throw new Error(`no ${graph}`);
  return spec;
}

async function load(graphs: Partial<Record<GraphName, GraphSpec>>): Promise<void> {
  const { bundleDir, manifest } = await writeTinyBundle(modelsDir, graphs);
  const opened = await openOnnxGraphs({ bundleDir, manifest, providers });
  checkBundle(manifest, opened);
  await warmUp({ manifest, graphs: opened, memory: null, now: () => 0 });
}

test("the shipped bundle's graphs fit its manifest", async () => {
  for (const manifest of await loadManifests("models")) {
    const graphs = await openOnnxGraphs({ bundleDir: join("models", manifest.slug), manifest, providers });
    checkBundle(manifest, graphs);
    const samplesMax = manifest.engine.max_batch_samples;
    const warm = await warmUp({ manifest, graphs, memory: null, now: () => performance.now() });
    expect(warm).toMatchObject({ samplesMax, limitedBy: null });
  }
});

test("loads a bundle without an advance graph", async () => {
  await expect(load({})).resolves.toBeUndefined();
});

test("refuses a graph whose bytes are not those of the manifest", async () => {
  const { bundleDir, manifest } = await writeTinyBundle(modelsDir);
  await writeFile(join(bundleDir, "decoder.onnx"), "something else");
  await expect(openOnnxGraphs({ bundleDir, manifest, providers })).rejects.toThrow(
    /decoder\.onnx has SHA-256 .* the manifest says/,
  );
});

test("names the graph and the shapes when a tensor does not have the manifest's", async () => {
  const encoder = specOf("frame_encoder");
  const small = { ...encoder, inputs: [{ name: "frame", type: "uint8", dims: ["B", 8, 8, 3] }] } as const;
  await expect(load({ frame_encoder: small })).rejects.toThrow(
    "frame_encoder: frame is uint8 [B, 8, 8, 3], expected uint8 [B, 16, 16, 3]",
  );
});

test("refuses a fixed batch axis", async () => {
  const encoder = specOf("frame_encoder");
  const fixed = { ...encoder, inputs: [{ name: "frame", type: "uint8", dims: [1, 16, 16, 3] }] } as const;
  await expect(load({ frame_encoder: fixed })).rejects.toThrow("axis 0 of frame must be a dynamic batch axis");
});

test("says what is available when a graph takes a tensor that nothing gives", async () => {
  const head = specOf("denoiser_head");
  const wanting = { ...head, inputs: [...head.inputs, { name: "camera", type: "float32", dims: ["B", 3] }] } as const;
  await expect(load({ denoiser_head: wanting })).rejects.toThrow(
    /denoiser_head takes camera, which nothing before it gives; available: actions, .*latents/,
  );
});

test("a body may take what text_kv gives, in both its forms", async () => {
  const body = specOf("denoiser_body");
  const keys = { name: "text_keys", type: "float32", dims: ["B", 1] } as const;
  const taking = { ...body, inputs: [...body.inputs, keys] };
  const textKv: GraphSpec = {
    inputs: [{ name: "text_sum", type: "float32", dims: ["B", 1] }],
    outputs: [keys],
    nodes: [{ op: "Identity", in: ["text_sum"], out: ["text_keys"] }],
  };
  await expect(
    load({ text_kv: textKv, denoiser_body: taking, denoiser_body_unfused: taking }),
  ).resolves.toBeUndefined();
  await expect(load({ denoiser_body: taking })).rejects.toThrow("denoiser_body takes text_keys, which nothing");
  await expect(load({ denoiser_body_unfused: taking })).rejects.toThrow("denoiser_body_unfused takes text_keys");
});

test("refuses TeaCache without the tensor that it watches", async () => {
  const { bundleDir, manifest } = await writeTinyBundle(modelsDir);
  const graphs = await openOnnxGraphs({ bundleDir, manifest, providers });
  const teacache = { threshold: 0.1, coefficients: [1, 0] };
  const engine = { ...manifest.engine, optimisations: { ...manifest.engine.optimisations, teacache } };
  expect(() => checkBundle({ ...manifest, engine }, graphs)).toThrow(
    /teacache needs modulated in float32 from the denoiser, it is nowhere$/,
  );
});

test("refuses TeaCache where the tail needs more of the body than its tokens", async () => {
  const body = specOf("denoiser_body");
  const gate = { name: "gate", type: "float32", dims: ["B", 1, 1] } as const;
  const tail = specOf("denoiser_tail");
  const { bundleDir, manifest } = await writeTinyBundle(modelsDir, {
    denoiser_body: {
      ...body,
      outputs: [...body.outputs, gate],
      nodes: [...body.nodes, { op: "Identity", in: ["tokens"], out: ["gate"] }],
    },
    denoiser_tail: { ...tail, inputs: [...tail.inputs, gate] },
  });
  const graphs = await openOnnxGraphs({ bundleDir, manifest, providers });
  checkBundle(manifest, graphs); // without TeaCache that is as good as any
  const teacache = { threshold: 0.1, coefficients: [1, 0] };
  const engine = { ...manifest.engine, optimisations: { ...manifest.engine.optimisations, teacache } };
  expect(() => checkBundle({ ...manifest, engine }, graphs)).toThrow(
    /denoiser_tail takes gate from denoiser_body, which teacache may skip$/,
  );
});

test("refuses a graph without its required output", async () => {
  const renamed: GraphSpec = {
    ...specOf("denoiser_head"),
    outputs: [{ name: "tokenz", type: "float32", dims: ["B", 1, 1] }],
    nodes: [{ op: "Identity", in: ["noisy"], out: ["tokenz"] }],
  };
  await expect(load({ denoiser_head: renamed })).rejects.toThrow("denoiser_head does not give tokens");
});

test("warms powers of two up to the largest batch, and that one", () => {
  expect([1, 4, 6].map(warmUpSizes)).toEqual([[1], [1, 2, 4], [1, 2, 4, 6]]);
});
