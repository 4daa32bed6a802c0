/**
 * The quality gate: held-out rollouts (bench/held-out/) as served, every optimisation on, against the same rollouts with
 * every optimisation off, for each bundle at its defaults, with guidance and with a long sampler. PSNR, SSIM and LPIPS
 * must reach the thresholds of the bundle's manifest in every rollout; docs/quality.md says what that does and does not say.
 *
 *   npm run gate                 all bundles; writes its sections of docs/RESULTS.md
 *   npm run gate -- --short      two rollouts of one chunk, pusht-small only; writes nothing
 *
 * Environment: GATE=short (as --short), GATE_ROLLOUTS (of each setting, up to 12), BUNDLES (folders, by commas),
 * GATE_RESULTS (another file than docs/RESULTS.md), ORT_PROVIDERS.
 *
 * Ends with 1 when a bundle is under a threshold, has none, or cannot be run.
 */
import { readFile } from "node:fs/promises";
import { loadavg } from "node:os";
import { parseArgs } from "node:util";

import { createLog } from "#platform/log.ts";
import { createBar } from "#cli/bars.ts";
import { startScorer } from "#workers/inference/score/scorer.ts";

import { isScaled, readBundles } from "./bundle-engine.ts";
import { type BundleResult, gateBundle } from "./gate/gate-bundle.ts";
import { type Circumstances, sectionOf, tableOf } from "./gate/report.ts";
import { settingsOf } from "./gate/settings.ts";
import { describeMachine } from "./machine.ts";
import { RESULTS_FILE, writeSection } from "./results-file.ts";
import { numberOf } from "./settings.ts";

const SHORT_BUNDLES = "models/pusht-small";
const LPIPS_MODEL = "models/lpips/lpips-alex.json";

/** Those that say what was run. */
const COMMAND_SETTINGS: ReadonlySet<string> = new Set(["GATE", "GATE_ROLLOUTS", "BUNDLES", "ORT_PROVIDERS"]);

const [LOAD_AVERAGE_BEFORE = 0] = loadavg();

/** A listed model dreams the canonical four chunks; a bundle for measuring takes many times as long for each. */
const FULL = { rollouts: 6, chunks: { listed: 4, scaled: 2 } } as const;
const SHORT = { rollouts: 2, chunks: { listed: 1, scaled: 1 } } as const;

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { short: { type: "boolean", default: process.env["GATE"] === "short" } } });
  const amount = values.short ? SHORT : FULL;
  const rollouts = numberOf("GATE_ROLLOUTS", amount.rollouts);
  const bundles = await readBundles(values.short ? { BUNDLES: SHORT_BUNDLES, ...process.env } : process.env);
  const scorer = startScorer({ lpipsModel: LPIPS_MODEL, log: createLog("gate", "warn") });
  const failures: string[] = [];
  try {
    const circumstances = await describe();
    for (const bundle of bundles) {
      const { manifest } = bundle;
      const settings = settingsOf(manifest, amount.chunks[isScaled(bundle) ? "scaled" : "listed"]);
      const total = settings.length * rollouts;
      const bar = createBar(`${manifest.slug} {bar} {value}/{total} rollouts, {text}, {eta_formatted} to go`, total);
      let done = 0;
      const onRollout = (setting: string) => {
        done += 1;
        bar.update(done, setting);
        if (!process.stderr.isTTY) process.stderr.write(`${manifest.slug} ${done}/${total}: ${setting}\n`);
      };
      const providers = (process.env["ORT_PROVIDERS"] ?? "cpu").split(",");
      const gated = gateBundle({ bundle, settings, rollouts, providers, scorer, onRollout });
      const result = await gated.finally(() => bar.stop());
      print(result);
      failures.push(...result.failures);
      const file = process.env["GATE_RESULTS"] ?? (values.short ? null : RESULTS_FILE);
      if (file !== null) await writeSection(file, `gate:${manifest.slug}`, sectionOf(result, circumstances));
    }
  } finally {
    await scorer.stop();
  }
  if (failures.length > 0) process.exitCode = 1;
}

async function describe(): Promise<Circumstances> {
  const { dependencies } = JSON.parse(await readFile("package.json", "utf8")) as {
    readonly dependencies: Readonly<Record<string, string>>; // pinned there exactly
  };
  const versions = { "onnxruntime-node": dependencies["onnxruntime-node"] ?? "unknown" };
  const settings = Object.entries(process.env).flatMap(([name, value]) =>
    COMMAND_SETTINGS.has(name) ? [`${name}=${value ?? ""}`] : [],
  );
  const command = [...settings, `npm run gate${process.argv.includes("--short") ? " -- --short" : ""}`].join(" ");
  return { command, date: new Date(), machine: describeMachine(), versions, loadAverage: LOAD_AVERAGE_BEFORE };
}

function print(result: BundleResult): void {
  const { manifest, failures, comparisons } = result;
  console.log(`\n${manifest.slug}: as served against the base spec`);
  if (comparisons.length > 0) console.log(tableOf(result).join("\n"));
  console.log(failures.length === 0 ? "passed" : failures.map((failure) => `FAILED: ${failure}`).join("\n"));
}

await main();
