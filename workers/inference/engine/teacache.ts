/**
 * TeaCache (Liu et al., "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model", CVPR 2025) for one
 * pass of one sample: while the modulated input of the first block hardly changes from step to step, neither does
 * what the body adds to its tokens, so that the last residual stands in for it. Decisions are made from this pass's
 * own numbers alone, and so are the same whatever else is in the batch. The first step of a block has nothing to
 * reuse and the last one makes what is shown: both are always computed.
 */
import type { TeaCache } from "#contract/manifest.ts";

/** What a pass remembers between two steps of a block. */
export interface Watched {
  /** Rescaled change since the body was last computed. */
  readonly accumulated: number;
  /** The modulated input of the step before, whether it was computed or not. */
  readonly modulated: Float32Array;
}

/** The place of a step in its block: `step` of 0 … `steps` − 1. */
export interface Place {
  readonly step: number;
  readonly steps: number;
}

/** Whether this step takes the cached residual, and what to remember for the next. `before` is null at the first step. */
export function watch(
  before: Watched | null,
  modulated: Float32Array,
  { step, steps }: Place,
  { threshold, coefficients }: TeaCache,
): { readonly reuse: boolean; readonly after: Watched } {
  const isEdge = before === null || step === 0 || step === steps - 1;
  const accumulated = isEdge
    ? Number.POSITIVE_INFINITY
    : before.accumulated + rescale(relativeChange(modulated, before.modulated), coefficients);
  // A change that is no number (a silent input that begins to speak: 0/0, x/0) is not under the threshold either.
  const reuse = accumulated < threshold;
  return { reuse, after: { accumulated: reuse ? accumulated : 0, modulated } };
}

/** Relative L1 distance, mean|now − before| / mean|before|, summed in float64. */
export function relativeChange(now: Float32Array, before: Float32Array): number {
  let change = 0;
  let size = 0;
  for (let i = 0; i < before.length; i++) {
    const was = before[i] ?? 0;
    change += Math.abs((now[i] ?? 0) - was);
    size += Math.abs(was);
  }
  return change / size;
}

/** The fitted polynomial, at least 0: published ones dip below it, which would take back change that has happened. */
export function rescale(change: number, coefficients: readonly number[]): number {
  const value = coefficients.reduce((sum, coefficient) => sum * change + coefficient, 0);
  return Math.max(0, value);
}

/** What the body added to its tokens. */
export function residualOf(tokensOut: Float32Array, tokens: Float32Array): Float32Array {
  const residual = new Float32Array(tokens.length);
  for (let i = 0; i < residual.length; i++) residual[i] = (tokensOut[i] ?? 0) - (tokens[i] ?? 0);
  return residual;
}

/** The body's stand-in: tokens with the cached residual added. */
export function reuseResidual(tokens: Float32Array, residual: Float32Array): Float32Array {
  const tokensOut = new Float32Array(tokens.length);
  for (let i = 0; i < tokensOut.length; i++) tokensOut[i] = (tokens[i] ?? 0) + (residual[i] ?? 0);
  return tokensOut;
}
