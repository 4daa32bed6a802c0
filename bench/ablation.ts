/**
 * What each optimisation brings, alone and together, and what it costs in quality:
 *
 *   all off     the base spec: at guidance 0, too, both passes of every step are run
 *   a switch    that optimisation alone, by its name in ENGINE_OPTIMISATIONS
 *   all on      as the bundle is served
 *
 * Every variant has an engine of its own in this process, warm and with the prompts seen; they never compute at the same
 * time. In a round each dreams the same held-out rollout (bench/held-out), in an order that rotates from round to round, so
 * that what disturbs the machine hits all alike. A speed-up is the median over rounds of the round's own ratio; PSNR, SSIM and
 * LPIPS compare with what `all off` dreamed in that round and are means over the rounds.
 *
 * Environment: BUNDLES (folders), STEPS (default: the bundle's own number of steps and, for the scaled one, 35), GUIDANCE
 * (beside 0), ACTIONS (of a rollout; default four chunks, of the scaled bundle one), SECONDS (for each setting: rounds go
 * on until then, at least one), ROUNDS (at most), BENCH=short (a smoke run), RESULTS (folder).
 *
 * Writes ablation.md and .json to bench/results; ends with 1 when all on is less than 2.5 times all off, or outside the
 * bundle's gate, on the scaled layout without guidance. `npm run bench:ablation`
 */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { type Manifest, OPTIMISATION_NAMES, type OptimisationName } from "#contract/manifest.ts";
import { createLog } from "#platform/log.ts";
import type { Engine } from "#workers/inference/engine/engine.ts";
import { specsOf } from "#workers/inference/engine/optimisations.ts";
import { type Scorer, startScorer } from "#workers/inference/score/scorer.ts";

import { ALL_OFF, ALL_ON, type Comparison, linesOf, rowsOf, type Turn, verdictsOf } from "./ablation/report.ts";
import { type Bundle, dreamOn, isScaled, readBundles, requestOf, startOn, workBetween } from "./bundle-engine.ts";
import { type GateSetting, nameOf } from "./gate/settings.ts";
import { type HeldOutRollout, loadHeldOut } from "./held-out.ts";
import { progress } from "./peers/measure.ts";
import { numberOf, numbersOf, writeReport } from "./settings.ts";

const SHORT = process.env["BENCH"] === "short";
const SECONDS = numberOf("SECONDS", SHORT ? 0 : 30);
const ROUNDS_MAX = numberOf("ROUNDS", 12);
const GUIDANCE = numberOf("GUIDANCE", 1.5);
/** DreamDojo's own number of steps. */
const MANY_STEPS = 35;
/** As few as TeaCache can skip any of. */
const SHORT_STEPS = 4;
/** Passes of one guided rollout: nothing here runs more at once. */
const SAMPLES_MAX = 2;

interface Variant {
  readonly name: string;
  readonly engine: Engine;
}

async function main(): Promise<void> {
  const log = createLog("bench", "warn");
  const dir = await mkdtemp(join(tmpdir(), "dream-ablation-"));
  const scorer = startScorer({ lpipsModel: "models/lpips/lpips-alex.json", log });
  const comparisons: Comparison[] = [];
  try {
    for (const bundle of await readBundles(process.env)) comparisons.push(...(await compareOn(bundle, scorer, dir)));
  } finally {
    await scorer.stop();
    await rm(dir, { recursive: true, force: true });
  }
  await writeReport({
    name: "ablation",
    title: "What each optimisation brings",
    how: "Variants take turns within a round; a speed-up is the median of the rounds' own ratios.",
    lines: linesOf(comparisons),
    figures: {
      settings: comparisons.map((comparison) => ({
        model: comparison.manifest.slug,
        ...comparison.setting,
        variants: rowsOf(comparison),
        engine_wall_ms: comparison.rounds.map((round) => round.map((turn) => turn.engine_wall_ms)),
      })),
      verdicts: verdictsOf(comparisons),
    },
  });
  if (verdictsOf(comparisons).some(({ holds, decides }) => decides && !holds) && !SHORT) process.exitCode = 1;
}

async function compareOn(bundle: Bundle, scorer: Scorer, dir: string): Promise<Comparison[]> {
  const { manifest } = bundle;
  const rollouts = await loadHeldOut(manifest, { actions: actionsOf(bundle) });
  const variants = await startVariants(bundle, rollouts);
  try {
    const comparisons: Comparison[] = [];
    for (const numSteps of stepsOf(bundle)) {
      for (const guidance of new Set([0, GUIDANCE])) {
        const setting = { numSteps, guidance, chunks: actionsOf(bundle) / manifest.shapes.chunk_size };
        const rounds = await roundsOf({ manifest, variants, rollouts, scorer, dir, setting });
        const { fixed } = specsOf(manifest, undefined);
        comparisons.push({ manifest, scaled: isScaled(bundle), fixed, setting, rounds });
      }
    }
    return comparisons;
  } finally {
    await Promise.all(variants.map(({ engine }) => engine.stop()));
  }
}

function stepsOf(bundle: Bundle): readonly number[] {
  const { default_num_steps: own } = bundle.manifest.sampler;
  if (SHORT) return numbersOf("STEPS", [Math.min(own, SHORT_STEPS)]);
  return numbersOf("STEPS", isScaled(bundle) ? [own, MANY_STEPS] : [own]);
}

function actionsOf(bundle: Bundle): number {
  const { chunk_size: chunk } = bundle.manifest.shapes;
  return numberOf("ACTIONS", isScaled(bundle) || SHORT ? chunk : 4 * chunk);
}

/** Each has seen every prompt. */
async function startVariants(bundle: Bundle, rollouts: readonly HeldOutRollout[]): Promise<Variant[]> {
  const { optimisations } = bundle.manifest.engine;
  const { fixed } = specsOf(bundle.manifest, undefined);
  const switches = OPTIMISATION_NAMES.filter((name) => optimisations[name] && !fixed.includes(name));
  const wanted: (readonly [string, readonly OptimisationName[] | undefined])[] = [
    [ALL_OFF, []],
    ...switches.map((name) => [name, [name]] as const),
    [ALL_ON, undefined],
  ];
  const variants: Variant[] = [];
  for (const [name, on] of wanted) {
    variants.push({ name, engine: await startOn(bundle, { optimisations: on, samplesMax: SAMPLES_MAX }) });
  }
  const { chunk_size: chunk, action_dim: dim } = bundle.manifest.shapes;
  const onePerPrompt = new Map(rollouts.map((rollout) => [rollout.prompt, rollout]));
  for (const { name, engine } of variants) {
    for (const rollout of onePerPrompt.values()) {
      const actions = [rollout.actions.slice(0, chunk * dim)];
      await dreamOn(engine, requestOf(rollout, { actions, numSteps: 1, guidance: GUIDANCE }));
    }
    progress(`${bundle.manifest.slug}, ${name}: warm`);
  }
  return variants;
}

interface Around {
  readonly manifest: Manifest;
  readonly variants: readonly Variant[];
  readonly rollouts: readonly HeldOutRollout[];
  readonly scorer: Scorer;
  readonly dir: string;
  readonly setting: GateSetting;
}

async function roundsOf(around: Around): Promise<Turn[][]> {
  const { manifest, rollouts, variants, setting } = around;
  const rounds: Turn[][] = [];
  const endAt = performance.now() + SECONDS * 1000;
  do {
    const rollout = rollouts[rounds.length % rollouts.length];
    if (!rollout) throw new Error("no held-out rollouts");
    const turns = await oneRound(around, rollout, rounds.length % variants.length);
    rounds.push(turns);
    const walls = turns.map(({ variant, engine_wall_ms }) => `${variant} ${engine_wall_ms.toFixed(0)}`);
    progress(`${manifest.slug}, ${nameOf(setting)}, round ${rounds.length}: ${walls.join(", ")} ms`);
  } while (performance.now() < endAt && rounds.length < ROUNDS_MAX);
  return rounds;
}

/** In the order of the variants, whoever began. */
async function oneRound(around: Around, rollout: HeldOutRollout, first: number): Promise<Turn[]> {
  const { manifest, variants, scorer, dir, setting } = around;
  const { numSteps, guidance, chunks } = setting;
  const { height, width, chunk_size: chunk } = manifest.shapes;
  const turns = new Map<string, Omit<Turn, "score">>();
  const fileOf = (variant: string): string => join(dir, `${variant.replaceAll(" ", "-")}.rgb`);
  for (const { name, engine } of [...variants.slice(first), ...variants.slice(0, first)]) {
    const before = engine.stats;
    const video: Uint8Array[] = [];
    const request = requestOf(rollout, { numSteps, guidance });
    const { engineWallMs } = await dreamOn(engine, request, (frames) => void video.push(frames));
    turns.set(name, { variant: name, engine_wall_ms: engineWallMs, work: workBetween(before, engine.stats) });
    await writeFile(fileOf(name), Buffer.concat(video));
  }
  // Afterwards, when nothing is timed.
  const shape = { frames: chunks * chunk, height, width };
  const scored: Turn[] = [];
  for (const { name } of variants) {
    const turn = turns.get(name);
    if (!turn) throw new Error(`${name} had no turn`);
    if (name === ALL_OFF) {
      scored.push({ ...turn, score: null });
      continue;
    }
    const { psnr, ssim, lpips } = await scorer.score({ reference: fileOf(ALL_OFF), candidate: fileOf(name), shape });
    const score = { seed: rollout.seed, psnr: psnr.mean, ssim: ssim.mean, lpips: lpips.mean };
    scored.push({ ...turn, score });
  }
  return scored;
}

await main();
