/** The served spec against the base spec in one engine: the same rollouts, the same noise, one after the other. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";

import type { Manifest } from "#contract/manifest.ts";
import type { Engine } from "#workers/inference/engine/engine.ts";
import type { SpecName } from "#workers/inference/engine/optimisations.ts";
import type { Scorer } from "#workers/inference/score/scorer.ts";

import { dreamOn, type EngineWork, requestOf, workBetween } from "../bundle-engine.ts";
import type { HeldOutRollout } from "../held-out.ts";
import type { GateSetting } from "./settings.ts";

const SPECS: readonly SpecName[] = ["served", "base"];

/** Of a rollout: the means over its frames. */
export interface RolloutScore {
  readonly seed: bigint;
  readonly psnr: number;
  readonly ssim: number;
  readonly lpips: number;
}

export interface Comparison {
  readonly setting: GateSetting;
  readonly rollouts: readonly RolloutScore[];
  /** Engine wall of all of them, each alone in the engine. */
  readonly wallMs: Readonly<Record<SpecName, number>>;
  /** Rows that the denoiser's body was run for, and those that TeaCache left out. */
  readonly bodies: Readonly<Record<SpecName, number>>;
  readonly skipped: number;
}

export interface CompareOptions {
  readonly engine: Engine;
  readonly scorer: Scorer;
  readonly manifest: Manifest;
  readonly setting: GateSetting;
  readonly rollouts: readonly HeldOutRollout[];
  /** For the raw frames of the two videos that are being compared. */
  readonly workDir: string;
  /** Called after each rollout. */
  readonly onRollout: () => void;
}

export async function compareSpecs(options: CompareOptions): Promise<Comparison> {
  const { setting, rollouts, scorer, manifest, workDir, onRollout } = options;
  const { chunk_size: chunk, height, width } = manifest.shapes;
  const shape = { frames: setting.chunks * chunk, height, width };
  const files = { served: join(workDir, "served.rgb"), base: join(workDir, "base.rgb") };
  const wallMs = { served: 0, base: 0 };
  const bodies = { served: 0, base: 0 };
  const scores: RolloutScore[] = [];
  let skipped = 0;
  await warm(options);
  for (const [i, rollout] of rollouts.entries()) {
    // The two take turns in going first, so that neither always finds the machine warm.
    for (const spec of i % 2 === 0 ? SPECS : SPECS.toReversed()) {
      const dreamt = await dream(options, rollout, spec);
      await writeFile(files[spec], dreamt.frames);
      wallMs[spec] += dreamt.wallMs;
      bodies[spec] += dreamt.body_rows;
      skipped += dreamt.skipped;
    }
    const { psnr, ssim, lpips } = await scorer.score({ reference: files.base, candidate: files.served, shape });
    scores.push({ seed: rollout.seed, psnr: psnr.mean, ssim: ssim.mean, lpips: lpips.mean });
    onRollout();
  }
  return { setting, rollouts: scores, wallMs, bodies, skipped };
}

/** What a spec's first rollout does once (graphs that are opened when they are needed, tables, texts) is in no wall. */
async function warm(options: CompareOptions): Promise<void> {
  const setting = { ...options.setting, numSteps: 1, chunks: 1 };
  for (const rollout of options.rollouts.slice(0, 1)) {
    for (const spec of SPECS) await dream({ ...options, setting }, rollout, spec);
  }
}

interface Dreamt extends EngineWork {
  readonly frames: Uint8Array;
  readonly wallMs: number;
}

async function dream(options: CompareOptions, rollout: HeldOutRollout, spec: SpecName): Promise<Dreamt> {
  const { engine, manifest, setting } = options;
  const { chunk_size: chunk, action_dim: actionDim } = manifest.shapes;
  const { numSteps, guidance, chunks } = setting;
  const actions = [rollout.actions.slice(0, chunks * chunk * actionDim)];
  const parts: Uint8Array[] = [];
  const before = engine.stats;
  const request = requestOf(rollout, { numSteps, guidance, spec, actions, lane: "bulk" });
  const { engineWallMs: wallMs } = await dreamOn(engine, request, (frames) => void parts.push(frames));
  return { frames: Buffer.concat(parts), wallMs, ...workBetween(before, engine.stats) };
}
