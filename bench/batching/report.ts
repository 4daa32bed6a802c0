/** What the policies did with the same arrivals, as tables and a chart. */
import { percentile } from "../peers/load.ts";
import { linesSvg } from "../plot.ts";
import { framesOf, type MixedRequest } from "./mix.ts";
import type { PolicyName } from "./policies.ts";

/** One request's times from when it was due, in milliseconds. */
export interface Answer {
  readonly request: MixedRequest;
  readonly firstFrameMs: number;
  readonly doneMs: number;
}

/** One policy under one load. */
export interface Run {
  readonly policy: PolicyName;
  /** Of what `no batching` does at most; null: everything was there at once. */
  readonly load: number | null;
  /** From the first arrival to the last answer. */
  readonly seconds: number;
  /** Samples in a forward of the denoiser's body, on average. */
  readonly samples_a_forward: number;
  readonly answers: readonly Answer[];
}

export interface Figures {
  readonly requests: number;
  readonly requests_per_s: number;
  readonly frames_per_s: number;
  readonly lanes: Readonly<Record<Group, LaneFigures>>;
}

export interface LaneFigures {
  readonly p50_ms: number;
  readonly p99_ms: number;
  readonly first_frame_p50_ms: number;
  readonly first_frame_p99_ms: number;
}

/** Whose latencies are shown: a request of 8 candidates is the longest there is, and says little of who waited for it. */
const GROUPS = {
  all: () => true,
  realtime: ({ lane }) => lane === "realtime",
  "realtime, K = 1": ({ lane, k }) => lane === "realtime" && k === 1,
  bulk: ({ lane }) => lane === "bulk",
} as const satisfies Record<string, (request: MixedRequest) => boolean>;
type Group = keyof typeof GROUPS;
const GROUP_NAMES = Object.keys(GROUPS) as Group[]; // its keys are what its type says

export function figuresOf({ answers, seconds }: Pick<Run, "answers" | "seconds">): Figures {
  const ofLane = (lane: Group): LaneFigures => {
    const own = answers.filter(({ request }) => GROUPS[lane](request));
    const sorted = (of: (answer: Answer) => number): number[] => own.map(of).sort((a, b) => a - b);
    const [done, first] = [sorted(({ doneMs }) => doneMs), sorted(({ firstFrameMs }) => firstFrameMs)];
    return {
      p50_ms: percentile(done, 50),
      p99_ms: percentile(done, 99),
      first_frame_p50_ms: percentile(first, 50),
      first_frame_p99_ms: percentile(first, 99),
    };
  };
  const frames = answers.reduce((sum, { request }) => sum + framesOf(request), 0);
  return {
    requests: answers.length,
    requests_per_s: answers.length / seconds,
    frames_per_s: frames / seconds,
    lanes: {
      all: ofLane("all"),
      realtime: ofLane("realtime"),
      "realtime, K = 1": ofLane("realtime, K = 1"),
      bulk: ofLane("bulk"),
    },
  };
}

export interface BundleRuns {
  readonly model: string;
  /** What its requests vary in. */
  readonly mix: string;
  /** Policy by policy for each load, the backlog first. */
  readonly runs: readonly Run[];
}

export const chartFileOf = (model: string): string => `batching-${model}.svg`;

export function linesOf({ model, mix, runs }: BundleRuns): string[] {
  const loads = [...new Set(runs.map(({ load }) => load))];
  return [
    `## ${model}`,
    "",
    `Requests of ${mix}.`,
    "",
    ...loads.flatMap((load) =>
      loadLines(
        load,
        runs.filter((run) => run.load === load),
      ),
    ),
    `![P99 by load, ${model}](${chartFileOf(model)})`,
    "",
  ];
}

function loadLines(load: number | null, runs: readonly Run[]): string[] {
  const baseline = runs.find(({ policy }) => policy === "no batching");
  if (!baseline) throw new Error("no run without batching to compare with");
  const without = figuresOf(baseline);
  const head =
    load === null
      ? `### All ${without.requests} at once: what each can do at most`
      : `### ${percent(load)} of what no batching can do at most, ${without.requests} Poisson arrivals`;
  const heads =
    load === null
      ? ["requests/s", "frames/s", "÷ no batching", "samples a forward"]
      : [
          "lane",
          "requests/s",
          "P50",
          "P99",
          "÷ no batching's",
          "first frame P50",
          "first frame P99",
          "÷ no batching's",
        ];
  return [
    head,
    "",
    `| policy | ${heads.join(" | ")} |`,
    `|---|${heads.map(() => "---|").join("")}`,
    ...runs.flatMap((run) => {
      const figures = figuresOf(run);
      if (load === null) {
        const { requests_per_s, frames_per_s } = figures;
        const ratio = frames_per_s / without.frames_per_s;
        const cells = [requests_per_s.toFixed(2), frames_per_s.toFixed(1), ratio.toFixed(2)];
        return `| ${run.policy} | ${cells.join(" | ")} | ${run.samples_a_forward.toFixed(2)} |`;
      }
      return GROUP_NAMES.map((lane) => {
        const [own, other] = [figures.lanes[lane], without.lanes[lane]];
        const cells = [
          lane,
          lane === "all" ? figures.requests_per_s.toFixed(2) : "",
          ms(own.p50_ms),
          ms(own.p99_ms),
          (own.p99_ms / other.p99_ms).toFixed(2),
          ms(own.first_frame_p50_ms),
          ms(own.first_frame_p99_ms),
          (own.first_frame_p99_ms / other.first_frame_p99_ms).toFixed(2),
        ];
        return `| ${run.policy} | ${cells.join(" | ")} |`;
      });
    }),
    "",
  ];
}

/** P99 of the realtime lane and of all, by load. */
export function chartOf({ model, runs }: BundleRuns): string {
  const policies = [...new Set(runs.map(({ policy }) => policy))];
  const [backlog] = runs.filter(({ policy, load }) => policy === "no batching" && load === null);
  return linesSvg({
    title: `P99 of a request by offered load: ${model}`,
    xLabel: "offered load, % of what no batching can do at most",
    yLabel: "P99, seconds",
    limit: {
      value: backlog ? backlog.seconds / backlog.answers.length : Number.NaN,
      label: "a request alone, on average",
    },
    lines: (["realtime", "all"] as const).flatMap((lane) =>
      policies.map((policy) => ({
        name: `${SHORT_NAMES[policy]}, ${lane}`,
        points: runs.flatMap((run) =>
          run.policy === policy && run.load !== null
            ? [[100 * run.load, figuresOf(run).lanes[lane].p99_ms / 1000] as const]
            : [],
        ),
      })),
    ),
  });
}

/** There is little room beside a chart. */
const SHORT_NAMES: Readonly<Record<PolicyName, string>> = {
  "continuous batching": "continuous",
  "batches run to completion": "batches",
  "no batching": "no batching",
};

const percent = (share: number): string => `${(100 * share).toFixed(0)} %`;
const ms = (value: number): string => (Number.isFinite(value) ? `${value.toFixed(0)} ms` : "—");
