/** The ablation's rounds as tables with every number beside its baseline, and whether the claim holds. */
import type { Manifest } from "#contract/manifest.ts";

import type { EngineWork } from "../bundle-engine.ts";
import type { RolloutScore } from "../gate/compare.ts";
import { failuresOf, meanOf, METRICS } from "../gate/judge.ts";
import { type GateSetting, nameOf } from "../gate/settings.ts";
import { median } from "../machine.ts";

export const ALL_OFF = "all off (base)";
export const ALL_ON = "all on";
/** Of all on against all off, on the scaled layout. */
const SPEED_UP_MIN = 2.5;

/** What one variant did in one round. */
export interface Turn {
  readonly variant: string;
  readonly engine_wall_ms: number;
  readonly work: EngineWork;
  /** Against what `all off` dreamed in the same round; null for that one itself. */
  readonly score: RolloutScore | null;
}

/** One setting of one bundle. */
export interface Comparison {
  readonly manifest: Pick<Manifest, "slug" | "gate">;
  /** Of a large model's layout: the claim is about these. */
  readonly scaled: boolean;
  /** Switches that the bundle cannot turn off: on in every variant. */
  readonly fixed: readonly string[];
  readonly setting: GateSetting;
  /** Every variant once, in the same order. */
  readonly rounds: readonly (readonly Turn[])[];
}

export interface Row {
  readonly variant: string;
  readonly engine_wall_ms: number;
  readonly speed_up: number;
  /** Of a rollout, on average. */
  readonly work: EngineWork;
  readonly quality: Omit<RolloutScore, "seed"> | null;
}

export function rowsOf({ rounds }: Pick<Comparison, "rounds">): Row[] {
  const [first = []] = rounds;
  return first.map(({ variant }): Row => {
    const turns = rounds.map((round) => turnOf(round, variant));
    const wallsOf = (name: string): number[] => rounds.map((round) => turnOf(round, name).engine_wall_ms);
    const walls = wallsOf(variant);
    return {
      variant,
      engine_wall_ms: median(walls),
      speed_up: median(wallsOf(ALL_OFF).map((base, round) => base / (walls[round] ?? Number.NaN))),
      work: meanWork(turns.map(({ work }) => work)),
      quality: meanQuality(turns.flatMap(({ score }) => score ?? [])),
    };
  });
}

function meanQuality(scores: readonly RolloutScore[]): Row["quality"] {
  if (scores.length === 0) return null;
  const [psnr = 0, ssim = 0, lpips = 0] = METRICS.map((metric) => meanOf(metric, scores));
  return { psnr, ssim, lpips };
}

export interface Verdict {
  readonly claim: string;
  readonly holds: boolean;
  /** Whether missing it fails the bench: guided rollouts are reported, the claim is about what the layout is served with. */
  readonly decides: boolean;
}

export function verdictsOf(comparisons: readonly Comparison[]): Verdict[] {
  return comparisons.flatMap((comparison): Verdict[] => {
    const { manifest, scaled, setting, rounds } = comparison;
    const all = rowsOf(comparison).find(({ variant }) => variant === ALL_ON);
    if (!scaled || !all) return [];
    const scores = rounds.flatMap((round) => turnOf(round, ALL_ON).score ?? []);
    const failures = failuresOf(manifest, { setting, rollouts: scores });
    const speed = `all on is ${all.speed_up.toFixed(2)} times as fast as all off (at least ${SPEED_UP_MIN})`;
    const quality = failures.length === 0 ? "within the bundle's gate" : failures.join("; ");
    return [
      {
        claim: `${manifest.slug}, ${nameOf(setting)}: ${speed}, ${quality}`,
        holds: all.speed_up >= SPEED_UP_MIN && failures.length === 0,
        decides: setting.guidance === 0,
      },
    ];
  });
}

export function linesOf(comparisons: readonly Comparison[]): string[] {
  const verdicts = verdictsOf(comparisons);
  return [
    "Counts are of one rollout. A row is one pass of one denoising step through the denoiser's body, the expensive part. " +
      "*Skipped* rows took TeaCache's residual instead; *halved* are the unconditional passes that guidance 0 made needless " +
      "(with everything off they are run, and count for nothing). The prompts (an empty one and `slow arm`) have been seen " +
      "before, as a planner's have: with prompts that are always new the text cache finds the null sequence alone. Quality is " +
      "against what *all off* dreamed in the same round; 100 dB is the very same pixels.",
    ...comparisons.flatMap((comparison) => [
      "",
      `## ${comparison.manifest.slug}, ${nameOf(comparison.setting)}`,
      "",
      `${comparison.rounds.length} ${comparison.rounds.length === 1 ? "round" : "rounds"}.` +
        (comparison.fixed.length === 0
          ? ""
          : ` On in every row, for want of another graph: ${comparison.fixed.join(", ")}.`),
      "",
      "| variant | engine wall a rollout | speed-up | rows run | skipped | halved | timestep rows from the table | text from the cache | PSNR | SSIM | LPIPS |",
      "|---|---|---|---|---|---|---|---|---|---|---|",
      ...rowsOf(comparison).map(lineOf),
    ]),
    ...(verdicts.length === 0 ? [] : ["", "## The claim", ""]),
    ...verdicts.map(({ claim, holds }) => `- ${holds ? "holds" : "**missed**"}: ${claim}`),
  ];
}

function lineOf({ variant, engine_wall_ms, speed_up, work, quality }: Row): string {
  const qualities = quality
    ? [`${quality.psnr.toFixed(2)} dB`, quality.ssim.toFixed(4), quality.lpips.toFixed(4)]
    : ["—", "—", "—"];
  const cells = [
    variant,
    `${engine_wall_ms.toFixed(0)} ms`,
    speed_up.toFixed(2),
    ...[work.body_rows, work.skipped, work.halved, work.timestep_hits].map((count) => String(Number(count.toFixed(1)))),
    `${work.text_hits} of ${work.text_lookups}`,
    ...qualities,
  ];
  return `| ${cells.join(" | ")} |`;
}

function meanWork(works: readonly EngineWork[]): EngineWork {
  const [first] = works;
  if (!first) throw new Error("no rounds");
  const names = Object.keys(first) as (keyof EngineWork)[]; // its keys are what its type says
  const mean = (name: keyof EngineWork): number => works.reduce((sum, work) => sum + work[name], 0) / works.length;
  return { ...first, ...Object.fromEntries(names.map((name) => [name, mean(name)])) };
}

function turnOf(round: readonly Turn[], variant: string): Turn {
  const turn = round.find((one) => one.variant === variant);
  if (!turn) throw new Error(`a round without ${variant}`);
  return turn;
}
