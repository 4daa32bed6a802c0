/**
 * One candidate video as a small state machine: encode → (denoise × steps → decode) × blocks, chunk after chunk. It
 * says what it needs next and what rows that takes, and moves on when it is given the result. It runs nothing.
 */
import { strict as assert } from "node:assert";

import type { Manifest } from "#contract/manifest.ts";

import type { Timesteps } from "./conditioning.ts";
import { chunkNoise } from "./philox.ts";
import type { Stage } from "./plan.ts";
import { eulerStep, guide } from "./sampler.ts";
import { bytesOf, float32, floatsOf, int64, sizeOf, type Tensor, type Tensors, uint8, zeros } from "./tensor.ts";

/** A frame that a chunk starts from. The K candidates of a rollout hold the same one, so it is encoded once. */
export interface ConditioningFrame {
  readonly frame: Tensor;
  /** What the frame encoder gave, `latent` among it; null until then. */
  encoded: Tensors | null;
}

export interface SampleSpec {
  readonly rolloutId: string;
  readonly candidate: number;
  readonly seed: bigint;
  readonly guidance: number;
  readonly alone: boolean;
  readonly start: ConditioningFrame;
  /** `[T, action_dim]` in the environment's units, T a multiple of chunk_size. */
  readonly actions: Float32Array;
  readonly text: Tensors;
  /** Text tensors of the null sequence; used where guidance is not 0. */
  readonly nullText: Tensors;
  readonly timesteps: Timesteps;
}

export interface Sample {
  readonly spec: SampleSpec;
  readonly shapes: Manifest["shapes"];
  /** Normalised actions, `[chunk_size, action_dim]` a chunk. */
  readonly chunkActions: readonly Tensor[];
  /** From here on: where it is. Tensors are replaced, never written to. */
  chunk: number;
  conditioning: ConditioningFrame;
  /** Frames of this chunk already generated. */
  position: number;
  step: number;
  /** Row 0 the conditioning frame, row i the frame after action i − 1, zeros from `position + 1` on. */
  latents: Tensor;
  /** Noise of this chunk, `[chunk_size, ...noise_shape]`. */
  noise: Float32Array;
  noisy: Tensor;
  /** Frames given away that the receiver has not taken yet. */
  framesAhead: number;
  finished: boolean;
}

export function createFrame(pixels: Uint8Array, { height, width }: Manifest["shapes"]): ConditioningFrame {
  assert(pixels.length === height * width * 3, "a frame is RGB at the model's resolution");
  return { frame: uint8([height, width, 3], pixels), encoded: null };
}

export function createSample(spec: SampleSpec, { shapes, actions }: Manifest): Sample {
  const perChunk = shapes.chunk_size * shapes.action_dim;
  assert(spec.actions.length > 0 && spec.actions.length % perChunk === 0, "actions come in whole chunks");
  const normalised = normaliseActions(spec.actions, actions);
  const chunkActions = Array.from({ length: normalised.length / perChunk }, (_, chunk) =>
    float32([shapes.chunk_size, shapes.action_dim], normalised.subarray(chunk * perChunk, (chunk + 1) * perChunk)),
  );
  const nothing = float32([0], new Float32Array(0)); // until the first chunk begins, below
  const sample: Sample = {
    spec,
    shapes,
    chunkActions,
    chunk: 0,
    conditioning: spec.start,
    position: 0,
    step: 0,
    latents: nothing,
    noise: nothing.data,
    noisy: nothing,
    framesAhead: 0,
    finished: false,
  };
  beginChunk(sample, 0, spec.start);
  return sample;
}

/** `(a − offset) / scale` for each dimension, in float32. */
export function normaliseActions(actions: Float32Array, { offset, scale }: Manifest["actions"]): Float32Array {
  const dims = offset.length;
  return actions.map((value, i) =>
    Math.fround(
      Math.fround(value - Math.fround(offset[i % dims] ?? Number.NaN)) / Math.fround(scale[i % dims] ?? Number.NaN),
    ),
  );
}

/** What it needs next. Only the frame that starts a chunk is encoded, and not by this one if a sibling had it done. */
export function stageOf(sample: Sample): Stage {
  if (sample.conditioning.encoded === null) return "encode";
  return sample.step < sample.spec.timesteps.rows.length ? "denoise" : "decode";
}

/** Rows of its next forward: with guidance the unconditional pass is a second row of the same denoising forward. */
export const rowsNeeded = (sample: Sample): number =>
  stageOf(sample) === "denoise" && sample.spec.guidance !== 0 ? 2 : 1;

export function denoiseRows(sample: Sample): Tensors[] {
  const { spec, step, noisy } = sample;
  const shared = { ...stateOf(sample), ...spec.timesteps.rows[step], noisy };
  const conditional = { ...shared, ...spec.text };
  return spec.guidance === 0 ? [conditional] : [conditional, { ...shared, ...spec.nullText }];
}

/** `velocities` in the order of `denoiseRows`. */
export function applyVelocities(sample: Sample, velocities: readonly Tensor[]): void {
  const { spec, step, noisy } = sample;
  const [cond, uncond] = velocities.map(floatsOf);
  const [now, after] = spec.timesteps.t.subarray(step, step + 2);
  assert(cond && now !== undefined && after !== undefined);
  const velocity = uncond ? guide(cond, uncond, spec.guidance) : cond;
  sample.noisy = float32(noisy.dims, eulerStep(floatsOf(noisy), velocity, now, after));
  sample.step += 1;
}

/** After the last step the noisy block is the denoised one; without an `advance` graph it is the latents, too. */
export function decodeRow(sample: Sample): Tensors {
  return { ...stateOf(sample), ...sample.spec.text, denoised: sample.noisy, block_latents: sample.noisy };
}

/** Takes a decoded block and moves on: to the next block, to the next chunk (from the last frame's pixels), or to the end. */
export function applyBlock(sample: Sample, blockLatents: Tensor, frames: Tensor): void {
  const { shapes } = sample;
  const position = sample.position + shapes.block_frames;
  if (position < shapes.chunk_size) {
    sample.latents = withRows(sample.latents, sample.position + 1, blockLatents);
    beginBlock(sample, position);
    return;
  }
  if (sample.chunk + 1 === sample.chunkActions.length) {
    sample.finished = true;
    return;
  }
  // A copy: the engine hands the decoded frames themselves away. Pixels are all that a chunk knows of the one before.
  const pixels = bytesOf(frames).slice(-shapes.height * shapes.width * 3);
  beginChunk(sample, sample.chunk + 1, createFrame(pixels, shapes));
}

function beginChunk(sample: Sample, chunk: number, conditioning: ConditioningFrame): void {
  const { shapes, spec } = sample;
  sample.chunk = chunk;
  sample.conditioning = conditioning;
  sample.noise = chunkNoise(spec.seed, chunk, shapes.chunk_size * sizeOf(shapes.noise_shape));
  sample.latents = zeros("float32", [shapes.chunk_size + 1, ...shapes.latent_shape]);
  if (conditioning.encoded) applyEncoded(sample);
  beginBlock(sample, 0);
}

/** The conditioning frame is encoded: its latent is row 0 of the chunk's context. */
export function applyEncoded(sample: Sample): void {
  const latent = sample.conditioning.encoded?.["latent"];
  assert(latent, "the frame encoder gives a latent");
  sample.latents = withRows(sample.latents, 0, latent);
}

function beginBlock(sample: Sample, position: number): void {
  const { block_frames: frames, noise_shape: noiseShape } = sample.shapes;
  const size = sizeOf(noiseShape);
  sample.position = position;
  sample.step = 0;
  sample.noisy = float32([frames, ...noiseShape], sample.noise.subarray(position * size, (position + frames) * size));
}

/** What every graph of a chunk may take. */
function stateOf(sample: Sample): Tensors {
  const actions = sample.chunkActions[sample.chunk];
  assert(actions);
  return {
    ...sample.conditioning.encoded,
    latents: sample.latents,
    actions,
    position: int64([], BigInt64Array.of(BigInt(sample.position))),
  };
}

/** A copy of a `[rows, …]` tensor with `rows` written from row `first` on. */
function withRows(tensor: Tensor, first: number, rows: Tensor): Tensor {
  const data = floatsOf(tensor).slice();
  const [, ...row] = tensor.dims;
  data.set(floatsOf(rows), first * sizeOf(row));
  return float32(tensor.dims, data);
}
