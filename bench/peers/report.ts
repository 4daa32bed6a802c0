/** What was measured, as tables with every number beside its baseline, a chart, and whether the claim holds. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { type describeMachine, median } from "../machine.ts";
import { linesSvg } from "../plot.ts";
import type { LoadFigures, Measured, PeerTuning } from "./measure.ts";
import type { Tuning } from "./systems.ts";

/** As it ships. */
export const OURS = "dream-engine";
/** Without what changes the video, where that ships: what is left is in the peers' pipeline, too. */
export const OURS_EXACT = `${OURS}, exact`;
const BARE = "bare loop";
const BARE_MP4 = "bare loop + mp4";
/** Of the bare loop's throughput. */
const SHARE_OF_BARE_MIN = 0.85;

interface Findings {
  readonly folder: string;
  readonly machine: ReturnType<typeof describeMachine>;
  readonly versions: Readonly<Record<string, string>>;
  readonly workload: Readonly<{ model: string; system_cores: string; rounds: number }> &
    Readonly<Record<string, unknown>>;
  readonly ceilings: { readonly bare_batch: number; readonly mp4_batch: number; readonly alone_s: number };
  readonly tunings: readonly PeerTuning[];
  readonly offered: readonly { readonly share: number; readonly per_s: number }[];
  readonly measured: ReadonlyMap<string, Measured>;
}

interface Claim {
  readonly claim: string;
  readonly holds: boolean;
}

export async function writeReport(findings: Findings): Promise<{ readonly made: string; readonly missed: boolean }> {
  const { folder, measured, offered, ceilings, ...rest } = findings;
  const claims = judge(findings);
  const made = [
    `# ${findings.workload.model} beside LitServe, Ray Serve and BentoML`,
    "",
    ...introduction(findings),
    ...saturationTable(findings),
    ...offered.flatMap((_, i) => loadTable(findings, i)),
    ...tuningTable(findings.tunings),
    "",
    "## The claim",
    "",
    ...claims.map(({ claim, holds }) => `- ${holds ? "holds" : "**missed**"}: ${claim}`),
    "",
  ].join("\n");
  const json = {
    made_by: "npm run bench:peers",
    ...rest,
    ceilings,
    offered,
    measured: Object.fromEntries(measured),
    claims,
  };
  await mkdir(folder, { recursive: true });
  // A file for each bundle: a run takes an hour, and nobody measures both in one.
  const file = join(folder, `peers-${findings.workload.model}`);
  await writeFile(`${file}.json`, `${JSON.stringify(json, null, 2)}\n`);
  await writeFile(`${file}.md`, made);
  await writeFile(`${file}.svg`, chart(findings));
  return { made, missed: claims.some(({ holds }) => !holds) };
}

function introduction({ machine, versions, workload, ceilings }: Findings): string[] {
  const listed = Object.entries(versions).map(([name, version]) => `${name} ${version}`);
  const settings = Object.entries(workload).map(([name, value]) => `${name} ${String(value)}`);
  return [
    "Made by `npm run bench:peers` (bench/peers.ts says what is measured and how it is kept fair) on " +
      `${machine.cores} cores of ${machine.cpu}. Medians of rounds in rotating order; ratios count, the times are this machine's.`,
    "",
    `- versions: Node ${machine.node}, ${listed.join(", ")}`,
    `- workload: ${settings.join("; ")}`,
    `- one rollout alone without any server, with mp4: ${ms(ceilings.alone_s * 1_000)}; ` +
      `best batch of the bare loop ${ceilings.bare_batch}, with mp4 ${ceilings.mp4_batch}`,
    "",
  ];
}

function saturationTable(findings: Findings): string[] {
  const { measured } = findings;
  const rates = new Map([...measured].map(([name, { saturations_per_s }]) => [name, median(saturations_per_s)]));
  const beside = (rate: number, other: string): string => ratio(rate / (rates.get(other) ?? Number.NaN));
  return [
    "## At saturation (a closed loop)",
    "",
    `| system | rollouts/s | beside the ${BARE} | beside the ${BARE_MP4} | ${OURS} beside it |`,
    "|---|---|---|---|---|",
    ...[...rates].map(
      ([name, rate]) =>
        `| ${name} | ${rate.toFixed(3)} | ${beside(rate, BARE)} | ${beside(rate, BARE_MP4)} | ` +
        `${ratio((rates.get(OURS) ?? Number.NaN) / rate)} |`,
    ),
    "",
  ];
}

function loadTable(findings: Findings, load: number): string[] {
  const { share, per_s } = findings.offered[load] ?? { share: Number.NaN, per_s: Number.NaN };
  const ours = at(findings, OURS, load);
  return [
    `## ${(100 * share).toFixed(0)} % of the fastest's saturation: ${per_s.toFixed(3)} rollouts/s offered (an open loop)`,
    "",
    "| system | rollouts/s done | P50 | P99 | its P50 ÷ ours | its P99 ÷ ours | answers | failed |",
    "|---|---|---|---|---|---|---|---|",
    ...served(findings).map((name) => {
      const one = at(findings, name, load);
      return (
        `| ${name} | ${one.done_per_s.toFixed(3)} | ${ms(one.p50_ms)} | ${ms(one.p99_ms)} | ` +
        `${ratio(one.p50_ms / ours.p50_ms)} | ${ratio(one.p99_ms / ours.p99_ms)} | ${one.answered} | ${one.failed} |`
      );
    }),
    "",
  ];
}

function tuningTable(tunings: readonly PeerTuning[]): string[] {
  return [
    "## How the peers were tuned (chosen in bold)",
    "",
    "| peer | batch size | wait | rollouts/s at saturation | P99 at 70 % of it |",
    "|---|---|---|---|---|",
    ...tunings.flatMap(({ name, tuning: chosen, tried }) =>
      tried.map(({ tuning, saturation_per_s, p99_ms }) => {
        const strong = tuning === chosen ? "**" : "";
        return `| ${name} | ${strong}${tuning.batch}${strong} | ${waitOf(tuning)} | ${saturation_per_s.toFixed(3)} | ${ms(p99_ms)} |`;
      }),
    ),
  ];
}

function judge(findings: Findings): Claim[] {
  const { measured, tunings, offered } = findings;
  const rateOf = (name: string): number => median(measured.get(name)?.saturations_per_s ?? []);
  // The bare loop computes every step, and so has to what is held against it.
  const exact = measured.has(OURS_EXACT) ? OURS_EXACT : OURS;
  const share = rateOf(exact) / rateOf(BARE);
  const claims = [
    {
      claim: `${exact} reaches ${ratio(share)} of the bare loop's throughput (at least ${ratio(SHARE_OF_BARE_MIN)})`,
      holds: share >= SHARE_OF_BARE_MIN,
    },
  ];
  for (const { name } of tunings) {
    const ahead = rateOf(OURS) / rateOf(name);
    claims.push({ claim: `at saturation ${OURS} does ${ratio(ahead)} times ${name}'s rollouts`, holds: ahead > 1 });
    for (const [load, { share }] of offered.entries()) {
      const beside = at(findings, name, load).p99_ms / at(findings, OURS, load).p99_ms;
      const claim = `at ${(100 * share).toFixed(0)} % ${name}'s P99 is ${ratio(beside)} times ${OURS}'s`;
      claims.push({ claim, holds: beside > 1 });
    }
  }
  const failed = served(findings).filter((name) => offered.some((_, load) => at(findings, name, load).failed > 0));
  claims.push({
    claim: `no request failed${failed.length > 0 ? `, but ${failed.join(", ")}` : ""}`,
    holds: failed.length === 0,
  });
  return claims;
}

function chart(findings: Findings): string {
  const { offered, ceilings, workload } = findings;
  return linesSvg({
    title: `P99 of a rollout by offered load: ${workload.model}, cores ${workload.system_cores}`,
    xLabel: "offered load, % of the fastest system's saturation",
    yLabel: "P99, seconds",
    limit: { value: ceilings.alone_s, label: "a rollout alone, no server" },
    lines: served(findings).map((name) => ({
      name,
      points: offered.map(({ share }, load) => [100 * share, at(findings, name, load).p99_ms / 1_000] as const),
    })),
  });
}

const served = ({ measured }: Findings): string[] => [...measured.keys()].filter((name) => !name.startsWith(BARE));

/** Medians of the rounds; counts are sums. */
function at({ measured }: Findings, name: string, load: number): LoadFigures {
  const rounds = measured.get(name)?.loads[load] ?? [];
  const medianOf = (figure: "done_per_s" | "p50_ms" | "p99_ms"): number => median(rounds.map((round) => round[figure]));
  const sumOf = (count: "answered" | "failed"): number => rounds.reduce((sum, round) => sum + round[count], 0);
  return {
    done_per_s: medianOf("done_per_s"),
    p50_ms: medianOf("p50_ms"),
    p99_ms: medianOf("p99_ms"),
    answered: sumOf("answered"),
    failed: sumOf("failed"),
  };
}

const ms = (value: number): string => (Number.isFinite(value) ? `${value.toFixed(0)} ms` : "—");
const ratio = (value: number): string => (Number.isFinite(value) ? value.toFixed(2) : "—");
const waitOf = ({ batch, waitMs }: Tuning): string =>
  batch === 1 ? "none" : waitMs === null ? "its own decision" : `${waitMs} ms`;
