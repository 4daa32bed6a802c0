/** Whether the served videos are as close to the base spec's as the bundle's manifest says. Pure. */
import type { Manifest } from "#contract/manifest.ts";

import type { Comparison, RolloutScore } from "./compare.ts";
import { nameOf } from "./settings.ts";

type Gate = NonNullable<Manifest["gate"]>;

interface Metric {
  readonly name: string;
  readonly unit: string;
  readonly digits: number;
  readonly of: (score: RolloutScore) => number;
  /** The threshold is the least; else the most. */
  readonly higherIsCloser: boolean;
  readonly threshold: (gate: Gate) => number;
}

export const METRICS: readonly Metric[] = [
  {
    name: "PSNR",
    unit: " dB",
    digits: 2,
    of: ({ psnr }) => psnr,
    higherIsCloser: true,
    threshold: ({ psnr_min: least }) => least,
  },
  {
    name: "SSIM",
    unit: "",
    digits: 5,
    of: ({ ssim }) => ssim,
    higherIsCloser: true,
    threshold: ({ ssim_min: least }) => least,
  },
  {
    name: "LPIPS",
    unit: "",
    digits: 5,
    of: ({ lpips }) => lpips,
    higherIsCloser: false,
    threshold: ({ lpips_max: most }) => most,
  },
];

export function meanOf(metric: Metric, rollouts: readonly RolloutScore[]): number {
  return rollouts.reduce((sum, score) => sum + metric.of(score), 0) / rollouts.length;
}

export const textOf = ({ digits }: Metric, value: number): string =>
  Number.isFinite(value) ? value.toFixed(digits) : "not a number";

/** The rollout furthest from its reference; one without a number is further than any. */
export function worstOf({ of, higherIsCloser }: Metric, rollouts: readonly RolloutScore[]): RolloutScore {
  const distance = (score: RolloutScore): number => {
    const value = of(score);
    if (!Number.isFinite(value)) return Infinity;
    return higherIsCloser ? -value : value;
  };
  return rollouts.reduce((worst, score) => (distance(score) > distance(worst) ? score : worst));
}

/** One sentence for each metric that is missed; none is a pass. Every rollout has to reach the thresholds (docs/quality.md). */
export function failuresOf(
  { slug, gate }: Pick<Manifest, "slug" | "gate">,
  comparison: Pick<Comparison, "setting" | "rollouts">,
): string[] {
  if (!gate) return [withoutGate(slug)];
  if (comparison.rollouts.length === 0) return [`${slug}, ${nameOf(comparison.setting)}: no rollout was compared`];
  return METRICS.flatMap((metric) => {
    const worst = worstOf(metric, comparison.rollouts);
    const [value, threshold] = [metric.of(worst), metric.threshold(gate)];
    const holds = metric.higherIsCloser ? value >= threshold : value <= threshold;
    if (Number.isFinite(value) && holds) return [];
    const got = textOf(metric, value) + (Number.isFinite(value) ? metric.unit : "");
    const expected = `${metric.higherIsCloser ? "at least" : "at most"} ${threshold}${metric.unit}`;
    return [
      `${slug}, ${nameOf(comparison.setting)}: ${metric.name} of rollout ${worst.seed} is ${got}, expected ${expected}`,
    ];
  });
}

export const withoutGate = (slug: string): string =>
  `${slug} has no "gate" in its model.json, so nothing says how close is close enough: expected psnr_min, ssim_min and lpips_max`;
