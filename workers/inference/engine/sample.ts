/**
 * One candidate video as a small state machine: encode → (denoise × steps → decode) × blocks, chunk after chunk. It
 * says what it needs next and what rows that takes, and moves on when it is given the result. It runs nothing.
 */
import { strict as assert } from "node:assert";

import type { Manifest } from "#contract/manifest.ts";
import type { Lane } from "#contract/rollout.ts";

import type { Timesteps } from "./conditioning.ts";
import { latentFramesOf, type StageGraphs } from "./graphs.ts";
import type { Optimisations } from "./optimisations.ts";
import { chunkNoise } from "./philox.ts";
import type { Stage } from "./plan.ts";
import { eulerStep, guide } from "./sampler.ts";
import type { Watched } from "./teacache.ts";
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
  readonly lane: Lane;
  readonly optimisations: Optimisations;
  /** Those of these optimisations. */
  readonly graphs: StageGraphs;
  /** A denoising step is two forwards, head and body: in engines whose TeaCache may skip the second. */
  readonly isSplit: boolean;
  readonly seed: bigint;
  readonly guidance: number;
  readonly alone: boolean;
  readonly start: ConditioningFrame;
  /** `[T, action_dim]` in the environment's units, T a multiple of chunk_size. */
  readonly actions: Float32Array;
  readonly text: Tensors;
  /** Text tensors of the null sequence, where there is an unconditional pass. */
  readonly nullText: Tensors | null;
  readonly timesteps: Timesteps;
}

/** One of the denoiser's passes: the conditional one, and with guidance the unconditional one. A row of a forward. */
export interface Pass {
  readonly text: Tensors;
  /** This step's row with what the head gave, while the body has not run. */
  headed: Tensors | null;
  /** This step's result, until all passes have theirs. */
  velocity: Tensor | null;
  /** What TeaCache knows of this block; null at its first step. */
  watched: Watched | null;
  /** What the body added when it last ran. */
  residual: Float32Array | null;
}

export interface Sample {
  readonly spec: SampleSpec;
  readonly shapes: Manifest["shapes"];
  /** Normalised actions, `[chunk_size, action_dim]` a chunk. */
  readonly chunkActions: readonly Tensor[];
  readonly passes: readonly Pass[];
  /** From here on: where it is. Tensors are replaced, never written to. */
  chunk: number;
  conditioning: ConditioningFrame;
  /** Latent frames of this chunk already generated. */
  position: number;
  step: number;
  /** Row 0 the conditioning frame, row i the latent frame after it, zeros from `position + 1` on. */
  latents: Tensor;
  /** Noise of this chunk, `[chunk_size / temporal_compression, ...noise_shape]`. */
  noise: Float32Array;
  noisy: Tensor;
  /** A realtime sample has its place in the forwards; it goes on where it stands. */
  parked: boolean;
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
  const texts = spec.nullText ? [spec.text, spec.nullText] : [spec.text];
  const sample: Sample = {
    spec,
    shapes,
    chunkActions,
    passes: texts.map((text) => ({ text, headed: null, velocity: null, watched: null, residual: null })),
    chunk: 0,
    conditioning: spec.start,
    position: 0,
    step: 0,
    latents: nothing,
    noise: nothing.data,
    noisy: nothing,
    parked: false,
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

/** Whether the denoiser's unconditional pass is run, be it for nothing. */
export const isGuided = (guidance: number, { guidanceShortcut }: Optimisations): boolean =>
  guidance !== 0 || !guidanceShortcut;

/** What it needs next. Only the frame that starts a chunk is encoded, and not by this one if a sibling had it done. */
export function stageOf(sample: Sample): Stage {
  if (sample.conditioning.encoded === null) return "encode";
  if (sample.step === sample.spec.timesteps.rows.length) return "decode";
  if (!sample.spec.isSplit) return "denoise";
  return sample.passes.some(({ headed }) => headed) ? "body" : "head";
}

/** Rows of its next forward: one for each pass that takes part in it. */
export function rowsNeeded(sample: Sample): number {
  const stage = stageOf(sample);
  if (stage === "body") return sample.passes.filter(({ headed }) => headed).length;
  return stage === "denoise" || stage === "head" ? sample.passes.length : 1;
}

export function denoiseRow(sample: Sample, { text }: Pass): Tensors {
  const { spec, step, noisy } = sample;
  return { ...stateOf(sample), ...spec.timesteps.rows[step], ...text, noisy };
}

/** When all passes have their velocity: the step is done. */
export function stepIfComplete(sample: Sample): void {
  const { spec, passes, step, noisy } = sample;
  if (passes.some(({ velocity }) => !velocity)) return;
  const [cond, uncond] = passes.map(({ velocity }) => velocity && floatsOf(velocity));
  const { [step]: now, [step + 1]: after } = spec.timesteps.t;
  assert(cond && now !== undefined && after !== undefined);
  const velocity = uncond ? guide(cond, uncond, spec.guidance) : cond;
  sample.noisy = float32(noisy.dims, eulerStep(floatsOf(noisy), velocity, now, after));
  sample.step += 1;
  for (const pass of passes) pass.velocity = null;
}

/** After the last step the noisy block is the denoised one; without an `advance` graph it is the latents, too. */
export function decodeRow(sample: Sample): Tensors {
  return { ...stateOf(sample), ...sample.spec.text, denoised: sample.noisy, block_latents: sample.noisy };
}

/** Takes a decoded block and moves on: to the next block, to the next chunk (from the last frame's pixels), or to the end. */
export function applyBlock(sample: Sample, blockLatents: Tensor, frames: Tensor): void {
  const { shapes } = sample;
  const latentFrames = latentFramesOf(shapes);
  const position = sample.position + latentFrames.block;
  if (position < latentFrames.chunk) {
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
  const latentFrames = latentFramesOf(shapes).chunk;
  sample.chunk = chunk;
  sample.conditioning = conditioning;
  sample.noise = chunkNoise(spec.seed, chunk, latentFrames * sizeOf(shapes.noise_shape));
  sample.latents = zeros("float32", [latentFrames + 1, ...shapes.latent_shape]);
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
  const { noise_shape: noiseShape } = sample.shapes;
  const frames = latentFramesOf(sample.shapes).block;
  const size = sizeOf(noiseShape);
  sample.position = position;
  sample.step = 0;
  for (const pass of sample.passes) {
    pass.watched = null;
    pass.residual = null;
  }
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
