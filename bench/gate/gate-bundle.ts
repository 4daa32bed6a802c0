/** One bundle through the gate: its engine is started as it is served, and every setting is compared and judged. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import type { Manifest } from "#contract/manifest.ts";
import type { Scorer } from "#workers/inference/score/scorer.ts";

import { type Bundle, startOn } from "../bundle-engine.ts";
import { loadHeldOut } from "../held-out.ts";
import { type Comparison, compareSpecs } from "./compare.ts";
import { failuresOf, withoutGate } from "./judge.ts";
import { type GateSetting, nameOf } from "./settings.ts";

export interface BundleResult {
  readonly manifest: Manifest;
  readonly comparisons: readonly Comparison[];
  /** Sentences; none is a pass. */
  readonly failures: readonly string[];
}

export interface GateOptions {
  readonly bundle: Bundle;
  readonly settings: readonly GateSetting[];
  /** Held-out rollouts of each setting. */
  readonly rollouts: number;
  readonly providers: readonly string[];
  readonly scorer: Scorer;
  /** Told after each rollout, of which setting it was. */
  readonly onRollout: (setting: string) => void;
}

export async function gateBundle(options: GateOptions): Promise<BundleResult> {
  const { bundle, settings, providers, scorer } = options;
  const { manifest } = bundle;
  if (!manifest.gate) return { manifest, comparisons: [], failures: [withoutGate(manifest.slug)] };
  const rollouts = await loadHeldOut(manifest, { count: options.rollouts });
  const workDir = await mkdtemp(join(tmpdir(), "dream-gate-"));
  try {
    // One rollout at a time, so that the two specs' walls can be compared.
    const engine = await startOn(bundle, { samplesMax: 1, providers });
    try {
      const comparisons: Comparison[] = [];
      for (const setting of settings) {
        const onRollout = () => options.onRollout(nameOf(setting));
        const common = { engine, scorer, manifest, rollouts, workDir };
        comparisons.push(await compareSpecs({ ...common, setting, onRollout }));
      }
      const failures = comparisons.flatMap((comparison) => failuresOf(manifest, comparison));
      return { manifest, comparisons, failures };
    } finally {
      await engine.stop();
    }
  } finally {
    await rm(workDir, { recursive: true, force: true });
  }
}
