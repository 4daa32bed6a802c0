/**
 * A bundle that does nothing useful, quickly, and misbehaves on request: an action is the number of turns that a loop
 * inside the denoiser's body makes (some 100 ns each), and a negative action makes the body fail.
 */
import { createHash } from "node:crypto";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { GRAPH_NAMES, type GraphName, type Manifest } from "#contract/manifest.ts";

import { type Dim, type GraphSpec, type ValueSpec, writeModel } from "./onnx-writer.ts";

export const TINY = "tiny";
export const SIDE = 16;
export const CHUNK = 2;

/** Makes the body fail when it meets it. */
export const POISON_ACTION = -1;
/** Keeps the body busy for longer than any test lives. */
export const ENDLESS_ACTION = 2 ** 60;

const float = (name: string, ...dims: Dim[]): ValueSpec => ({ name, type: "float32", dims: ["B", ...dims] });
const noisy = float("noisy", 1, 1);
const tokens = float("tokens", 1, 1);
const actions = float("actions", CHUNK, 1);
const latents = float("latents", CHUNK + 1, 1);

const TURN: GraphSpec = {
  inputs: [
    { name: "turn", type: "int64", dims: [] },
    { name: "go_on", type: "bool", dims: [] },
    { name: "x", type: "float32", dims: ["B", 1, 1] },
  ],
  outputs: [
    { name: "go_on_out", type: "bool", dims: [] },
    { name: "x_out", type: "float32", dims: ["B", 1, 1] },
  ],
  nodes: [
    { op: "Identity", in: ["go_on"], out: ["go_on_out"] },
    { op: "Identity", in: ["x"], out: ["x_out"] },
  ],
};

export const TINY_GRAPHS: Readonly<Partial<Record<GraphName, GraphSpec>>> = {
  text_encoder: {
    inputs: [
      { name: "text_ids", type: "int64", dims: ["B", 4] },
      { name: "text_mask", type: "float32", dims: ["B", 4] },
    ],
    outputs: [float("text_sum", 1)],
    nodes: [
      { op: "Cast", in: ["text_ids"], out: ["ids"], attributes: { to: 1 } },
      { op: "Mul", in: ["ids", "text_mask"], out: ["masked"] },
      { op: "ReduceSum", in: ["masked", "axis1"], out: ["text_sum"], attributes: { keepdims: 1 } },
    ],
    constants: { axis1: { type: "int64", dims: [1], values: [1] } },
  },
  frame_encoder: {
    inputs: [{ name: "frame", type: "uint8", dims: ["B", SIDE, SIDE, 3] }],
    outputs: [float("latent", 1)],
    nodes: [
      { op: "Cast", in: ["frame"], out: ["pixels"], attributes: { to: 1 } },
      { op: "ReduceMean", in: ["pixels", "axes"], out: ["mean"], attributes: { keepdims: 0 } },
      { op: "Unsqueeze", in: ["mean", "axis1"], out: ["latent"] },
    ],
    constants: {
      axes: { type: "int64", dims: [3], values: [1, 2, 3] },
      axis1: { type: "int64", dims: [1], values: [1] },
    },
  },
  timestep: {
    inputs: [float("t")],
    outputs: [float("t_rows", 1)],
    nodes: [{ op: "Unsqueeze", in: ["t", "axis1"], out: ["t_rows"] }],
    constants: { axis1: { type: "int64", dims: [1], values: [1] } },
  },
  denoiser_head: {
    inputs: [noisy, latents],
    outputs: [tokens],
    nodes: [{ op: "Identity", in: ["noisy"], out: ["tokens"] }],
  },
  denoiser_body: {
    inputs: [tokens, actions],
    outputs: [float("tokens_out", 1, 1)],
    nodes: [
      { op: "ReduceMin", in: ["actions"], out: ["least"], attributes: { keepdims: 0 } },
      { op: "Less", in: ["least", "zero"], out: ["poisoned"] },
      { op: "Cast", in: ["poisoned"], out: ["index"], attributes: { to: 7 } },
      // Index 1 of a list of one: the runtime refuses it.
      { op: "Gather", in: ["one_zero", "index"], out: ["nothing"] },
      { op: "Add", in: ["tokens", "nothing"], out: ["sound"] },
      { op: "ReduceMax", in: ["actions"], out: ["most"], attributes: { keepdims: 0 } },
      { op: "Cast", in: ["most"], out: ["turns"], attributes: { to: 7 } },
      { op: "Loop", in: ["turns", "", "sound"], out: ["tokens_out"], attributes: { body: TURN } },
    ],
    constants: {
      zero: { type: "float32", dims: [], values: [0] },
      one_zero: { type: "float32", dims: [1], values: [0] },
    },
  },
  denoiser_tail: {
    inputs: [float("tokens_out", 1, 1), noisy],
    outputs: [float("velocity", 1, 1)],
    nodes: [{ op: "Sub", in: ["tokens_out", "tokens_out"], out: ["velocity"] }],
  },
  decoder: {
    inputs: [float("block_latents", 1, 1)],
    outputs: [{ name: "frames", type: "uint8", dims: ["B", 1, SIDE, SIDE, 3] }],
    nodes: [
      { op: "Mul", in: ["block_latents", "scale"], out: ["scaled"] },
      { op: "Add", in: ["scaled", "offset"], out: ["shifted"] },
      { op: "Clip", in: ["shifted", "black", "white"], out: ["grey"] },
      { op: "Unsqueeze", in: ["grey", "axes"], out: ["grey5"] },
      { op: "Expand", in: ["grey5", "shape"], out: ["image"] },
      { op: "Cast", in: ["image"], out: ["frames"], attributes: { to: 2 } },
    ],
    constants: {
      scale: { type: "float32", dims: [], values: [40] },
      offset: { type: "float32", dims: [], values: [128] },
      black: { type: "float32", dims: [], values: [0] },
      white: { type: "float32", dims: [], values: [255] },
      axes: { type: "int64", dims: [2], values: [3, 4] },
      shape: { type: "int64", dims: [5], values: [1, 1, SIDE, SIDE, 3] },
    },
  },
};

/** Writes the bundle to `<modelsDir>/tiny`; `graphs` replaces some of its graphs. */
export async function writeTinyBundle(
  modelsDir: string,
  graphs: Readonly<Partial<Record<GraphName, GraphSpec>>> = {},
): Promise<{ readonly bundleDir: string; readonly manifest: Manifest }> {
  const bundleDir = join(modelsDir, TINY);
  await mkdir(bundleDir, { recursive: true });
  const files: Partial<Record<GraphName, { file: string; sha256: string; bytes: number }>> = {};
  for (const graph of GRAPH_NAMES) {
    const spec = graphs[graph] ?? TINY_GRAPHS[graph];
    if (!spec) continue;
    const model = writeModel(spec);
    const file = `${graph}.onnx`;
    await writeFile(join(bundleDir, file), model);
    files[graph] = { file, sha256: createHash("sha256").update(model).digest("hex"), bytes: model.length };
  }
  // Every required graph is in TINY_GRAPHS.
  const manifest = { ...tinyManifest(), graphs: files as Manifest["graphs"] };
  await writeFile(join(bundleDir, "model.json"), JSON.stringify(manifest));
  return { bundleDir, manifest };
}

export function tinyManifest(): Manifest {
  const nowhere = { key: "", name: "", short_name: "", logo_url: "", homepage: "", huggingface_org: "" };
  const graph = { file: "x.onnx", sha256: "0".repeat(64), bytes: 1 };
  return {
    format: 1,
    slug: TINY,
    catalogue: {
      name: "Tiny",
      provider: "test",
      upstream_provider: nowhere,
      category: "",
      summary: "",
      description: "",
      intended_use: "",
      training_data: "",
      license: "",
      links: {},
      is_flagship: false,
      is_benchmarked: false,
      model_size: "",
      embodiment: "",
      encoder_name: "",
      ckpt_repo: "",
      base_model: "",
    },
    shapes: {
      height: SIDE,
      width: SIDE,
      fps: 10,
      action_dim: 1,
      chunk_size: CHUNK,
      block_frames: 1,
      latent_shape: [1],
      noise_shape: [1],
      temporal_compression: 1,
    },
    sampler: { kind: "euler", shift: 1, default_num_steps: 2, default_guidance: 0 },
    actions: { offset: [0], scale: [1], unit: "turns" },
    text: { tokenizer: "bytes", max_tokens: 4, prompts: [""] },
    graphs: {
      text_encoder: graph,
      frame_encoder: graph,
      timestep: graph,
      denoiser_head: graph,
      denoiser_body: graph,
      denoiser_tail: graph,
      decoder: graph,
    },
    engine: {
      max_batch_samples: 4,
      cold_start_s: 0,
      optimisations: {
        guidance_shortcut: true,
        timestep_lut: true,
        text_cache: true,
        fused_qkv: true,
        teacache: null,
      },
    },
    training: {},
    quality: {},
  };
}
