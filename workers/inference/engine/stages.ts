/** What a forward of each stage does: rows from the samples, the stage's graphs, the results back into the samples. */
import { strict as assert } from "node:assert";

import type { EngineCounters } from "./counters.ts";
import type { Stage } from "./plan.ts";
import type { RunChain } from "./run-chain.ts";
import { applyBlock, applyEncoded, decodeRow, denoiseRow, type Pass, type Sample, stepIfComplete } from "./sample.ts";
import { residualOf, reuseResidual, watch } from "./teacache.ts";
import { bytesOf, float32, floatsOf, rowOf, rowsOf, type Tensor, type Tensors } from "./tensor.ts";

export interface StagesOptions {
  readonly run: RunChain;
  /** No batch is larger; the passes of a sample that are more go one after the other. */
  readonly rowsMax: number;
  readonly counters: EngineCounters;
  /** Every live sample: whoever waits for a frame that another had encoded goes on, too. */
  readonly live: () => readonly Sample[];
  /** Called for each decoded block; the frames are a view of a batch. */
  readonly onFrames: (sample: Sample, frames: Uint8Array) => void;
}

/** Samples that the planner put together: at that stage, and with the same graphs there. */
export type RunStage = (stage: Stage, samples: readonly Sample[]) => Promise<void>;

/** A row of a denoising forward. */
interface Row {
  readonly sample: Sample;
  readonly pass: Pass;
}

export function createStages({ run, rowsMax, counters, live, onFrames }: StagesOptions): RunStage {
  function runGraphsOf(stage: Stage, samples: readonly Sample[], rows: readonly Tensors[]): Promise<Tensors> {
    const [first] = samples;
    assert(first);
    return run(first.spec.graphs[stage], rows);
  }

  async function encode(samples: readonly Sample[]): Promise<void> {
    const waiting = [...new Set(samples.map((sample) => sample.conditioning))];
    const rows = waiting.map(({ frame }) => ({ frame }));
    const encoded = await runGraphsOf("encode", samples, rows);
    for (const [i, frame] of waiting.entries()) frame.encoded = rowsOf(encoded, i);
    // Also those that were not in this forward: whoever holds the frame has its latent now.
    for (const sample of live()) if (waiting.includes(sample.conditioning)) applyEncoded(sample);
  }

  async function decode(samples: readonly Sample[]): Promise<void> {
    const rows = samples.map(decodeRow);
    const output = await runGraphsOf("decode", samples, rows);
    for (const [i, sample] of samples.entries()) {
      const frames = rowOf(given(output["frames"]), i);
      const blockLatents = output["block_latents"]
        ? rowOf(output["block_latents"], i)
        : given(rows[i]?.["block_latents"]);
      applyBlock(sample, blockLatents, frames);
      onFrames(sample, bytesOf(frames));
    }
  }

  async function denoise(samples: readonly Sample[]): Promise<void> {
    for (const rows of batchesOf(rowsOfSteps(samples))) {
      const tensors = rows.map(({ sample, pass }) => denoiseRow(sample, pass));
      const { velocity } = await runGraphsOf("denoise", samples, tensors);
      for (const [i, { pass }] of rows.entries()) pass.velocity = rowOf(given(velocity), i);
    }
    countBatch(samples);
    for (const sample of samples) stepIfComplete(sample);
  }

  /** The cheap part, for all; a pass that may reuse its residual goes through the tail at once and needs no body. */
  async function head(samples: readonly Sample[]): Promise<void> {
    for (const rows of batchesOf(rowsOfSteps(samples))) {
      const tensors = rows.map(({ sample, pass }) => denoiseRow(sample, pass));
      const output = await runGraphsOf("head", samples, tensors);
      const reusing: Row[] = [];
      for (const [i, row] of rows.entries()) {
        row.pass.headed = { ...tensors[i], ...rowsOf(output, i) };
        if (mayReuse(row)) reusing.push(row);
      }
      if (reusing.length > 0) await tailOf(reusing);
    }
    for (const sample of samples) stepIfComplete(sample);
  }

  function mayReuse({ sample: { spec, step }, pass }: Row): boolean {
    const { teacache } = spec.optimisations;
    if (teacache === null) return false;
    const modulated = floatsOf(given(pass.headed?.["modulated"]));
    const place = { step, steps: spec.timesteps.rows.length };
    const { reuse, after } = watch(pass.watched, modulated, place, teacache);
    pass.watched = after;
    if (reuse) counters.teacache_rows_skipped += 1;
    else counters.teacache_rows_computed += 1;
    return reuse;
  }

  async function tailOf(rows: readonly Row[]): Promise<void> {
    const tensors = rows.map(({ pass: { headed, residual } }) => {
      const tokens = given(headed?.["tokens"]);
      assert(residual, "the first step of a block is always computed");
      return { ...headed, tokens_out: float32(tokens.dims, reuseResidual(floatsOf(tokens), residual)) };
    });
    const { velocity } = await run(["denoiser_tail"], tensors);
    for (const [i, { pass }] of rows.entries()) {
      pass.velocity = rowOf(given(velocity), i);
      pass.headed = null;
    }
  }

  async function body(samples: readonly Sample[]): Promise<void> {
    const waiting = samples.flatMap((sample) =>
      sample.passes.filter(({ headed }) => headed).map((pass): Row => ({ sample, pass })),
    );
    for (const rows of batchesOf(waiting)) {
      const tensors = rows.map(({ pass }) => pass.headed ?? {});
      const output = await runGraphsOf("body", samples, tensors);
      for (const [i, { sample, pass }] of rows.entries()) {
        pass.velocity = rowOf(given(output["velocity"]), i);
        if (sample.spec.optimisations.teacache && !isLastStep(sample)) {
          const tokensOut = rowOf(given(output["tokens_out"]), i);
          pass.residual = residualOf(floatsOf(tokensOut), floatsOf(given(pass.headed?.["tokens"])));
        }
        pass.headed = null;
      }
    }
    countBatch(samples);
    for (const sample of samples) stepIfComplete(sample);
  }

  /** All passes of all samples at their next step. */
  function rowsOfSteps(samples: readonly Sample[]): Row[] {
    for (const { spec, passes } of samples) {
      if (spec.optimisations.timestepLut) counters.timestep_lut_hits += passes.length;
      if (spec.guidance === 0 && passes.length === 1) counters.guidance_rows_saved += 1;
    }
    return samples.flatMap((sample) => sample.passes.map((pass) => ({ sample, pass })));
  }

  /** The planner keeps a forward within `rowsMax`, but for a sample that needs more by itself. */
  function batchesOf(rows: readonly Row[]): readonly (readonly Row[])[] {
    if (rows.length <= rowsMax) return [rows];
    return Array.from({ length: Math.ceil(rows.length / rowsMax) }, (_, i) =>
      rows.slice(i * rowsMax, (i + 1) * rowsMax),
    );
  }

  function countBatch({ length }: readonly Sample[]): void {
    counters.denoise_batches[length] = (counters.denoise_batches[length] ?? 0) + 1;
  }

  const stages = { encode, decode, head, body, denoise } satisfies Record<
    Stage,
    (samples: readonly Sample[]) => Promise<void>
  >;
  return (stage, samples) => stages[stage](samples);
}

const isLastStep = ({ step, spec }: Sample): boolean => step === spec.timesteps.rows.length - 1;

/** The bundle check made sure that the graphs give it. */
function given(tensor: Tensor | undefined): Tensor {
  assert(tensor);
  return tensor;
}
