/** What the gate found, as a table for the terminal and for docs/RESULTS.md. */
import { namesOf, specsOf } from "#workers/inference/engine/optimisations.ts";

import type { describeMachine } from "../machine.ts";
import type { Comparison } from "./compare.ts";
import type { BundleResult } from "./gate-bundle.ts";
import { meanOf, METRICS, textOf, worstOf } from "./judge.ts";
import { nameOf } from "./settings.ts";

export interface Circumstances {
  readonly command: string;
  readonly date: Date;
  readonly machine: ReturnType<typeof describeMachine>;
  readonly versions: Readonly<Record<string, string>>;
  /** Of the minute before the run. */
  readonly loadAverage: number;
}

const COLUMNS = [
  "setting",
  "rollouts",
  ...METRICS.map(({ name, unit }) => `${name}${unit}, mean (worst)`),
  "bodies run, served / base",
  "skipped",
  "wall, base ÷ served",
];

/** Markdown that reads as a table on a terminal too: one row a setting, the thresholds below. */
export function tableOf({ manifest, comparisons }: BundleResult): string[] {
  const rows = [
    COLUMNS,
    ...comparisons.map(rowOf),
    ["expected of every rollout", "", ...thresholdsOf(manifest), "", "", ""],
  ];
  const widths = COLUMNS.map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  const lines = rows.map((row) => `| ${row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join(" | ")} |`);
  return [lines[0] ?? "", `|${widths.map((width) => "-".repeat(width + 2)).join("|")}|`, ...lines.slice(1)];
}

function rowOf({ setting, rollouts, bodies, skipped, wallMs }: Comparison): string[] {
  const metrics = METRICS.map((metric) => {
    const [mean, worst] = [meanOf(metric, rollouts), metric.of(worstOf(metric, rollouts))];
    return `${textOf(metric, mean)} (${textOf(metric, worst)})`;
  });
  const could = bodies.served + skipped;
  return [
    nameOf(setting),
    String(rollouts.length),
    ...metrics,
    `${bodies.served} / ${bodies.base}`,
    `${skipped} of ${could}`,
    (wallMs.base / wallMs.served).toFixed(2),
  ];
}

function thresholdsOf({ gate }: BundleResult["manifest"]): string[] {
  return METRICS.map(({ threshold, higherIsCloser, unit }) =>
    gate ? `${higherIsCloser ? "≥" : "≤"} ${threshold(gate)}${unit}` : "none given",
  );
}

const list = (names: readonly string[]): string => names.join(", ") || "nothing";

/** The bundle's section of docs/RESULTS.md. */
export function sectionOf(result: BundleResult, circumstances: Circumstances): string {
  const { manifest, failures } = result;
  const { command, date, machine, versions, loadAverage } = circumstances;
  const { served, base, fixed } = specsOf(manifest, undefined);
  const listed = Object.entries(versions).map(([name, version]) => `${name} ${version}`);
  const teacache = served.teacache ? ` (TeaCache's threshold: ${served.teacache.threshold})` : "";
  const inBoth = fixed.length > 0 ? "; the bundle has no other body, so fused_qkv is in both" : "";
  return [
    `## The quality gate: ${manifest.slug}`,
    "",
    "Held-out rollouts as served against the same rollouts with the base spec, same seed, same engine. What the figures are: " +
      "[quality.md](quality.md).",
    "",
    ...tableOf(result),
    "",
    ...(failures.length === 0 ? ["**Passed.**"] : ["**Failed:**", "", ...failures.map((failure) => `- ${failure}`)]),
    "",
    `- made by \`${command}\` on ${date.toISOString().slice(0, 10)}`,
    `- served with ${list(namesOf(served))}${teacache}; base spec with ${list(namesOf(base))}${inBoth}`,
    `- body's graph: ${manifest.graphs.denoiser_body.sha256.slice(0, 12)}…`,
    `- machine: ${machine.cores} cores of ${machine.cpu}, ${machine.memory_gib} GiB, load average before ${loadAverage.toFixed(1)}; ` +
      `Node ${machine.node}, ${listed.join(", ")}`,
  ].join("\n");
}
