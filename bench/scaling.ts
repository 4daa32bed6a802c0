/**
 * How the defaults of the scaling policy were chosen, and how bad it can get: docs/scaling.md.
 *
 * Writes bench/results/scaling.json and scaling.md. `npm run bench:scaling`, with `-- --tries 100` for a shorter search.
 */
import { writeFile } from "node:fs/promises";
import { parseArgs } from "node:util";

import { SCALING_DEFAULTS, type ScalingOptions } from "#scheduler/scaling/policy.ts";
import { bestService } from "#scheduler/simulate/compare.ts";
import { rentOf } from "#scheduler/simulate/levels.ts";
import { createRandom, type Random } from "#scheduler/simulate/random.ts";
import { simulate } from "#scheduler/simulate/simulate.ts";
import { type Trace, traceOf } from "#scheduler/simulate/trace.ts";
import { FRAMES_PER_ROLLOUT, generate, type Workload } from "#scheduler/simulate/workloads.ts";

import { describeMachine } from "./machine.ts";

const { values } = parseArgs({ options: { tries: { type: "string", default: "1500" } } });

/** The pricing page: 4 s a rollout, 70 s a cold start, $3.95 an hour, $0.0005 a frame. */
const ROLLOUT_S = 4;
const PER_FRAME_S = ROLLOUT_S / FRAMES_PER_ROLLOUT;
const COLD_START_S = 70;
const USD_PER_HOUR = 3.95;
const USD_PER_FRAME = 0.0005;
const LOOK_EVERY_S = 1;
const HOURS = 72;

const scalingOf = (overrides: Partial<ScalingOptions>): ScalingOptions => ({
  ...SCALING_DEFAULTS,
  maximum: 64,
  samples_per_worker: 1,
  cold_start_s: COLD_START_S,
  ...overrides,
});

/** The traffic of a first customer, of a few, and of a day that has a night. */
const TRAFFIC: readonly { name: string; workload: Workload; frames: number }[] = [
  { name: "sparse", workload: "poisson", frames: 200_000 },
  { name: "bursts, few", workload: "bursty", frames: 600_000 },
  { name: "bursts, many", workload: "bursty", frames: 9_000_000 },
  { name: "days and nights", workload: "diurnal", frames: 9_000_000 },
];
const WINDOWS_S = [0, 15, 30, 60, 70, 120, 300, 600];
const BREAK_EVENS = [0.25, 0.5, 1, 1.5, 2, 3];

interface Point {
  readonly traffic: string;
  readonly window_s: number;
  readonly break_even: number;
  readonly cost_usd: number;
  readonly margin: number;
  readonly starts: number;
  readonly wait_mean_s: number;
  readonly wait_p50_s: number;
  readonly wait_p99_s: number;
  /** Of the requests, those that a start kept waiting for more than a rollout's time. */
  readonly waited_share: number;
}

function sweep(): Point[] {
  return TRAFFIC.flatMap(({ name, workload, frames }) => {
    const trace = generate(workload, {
      frames,
      hours: HOURS,
      seed: 1,
      scaledown_s: SCALING_DEFAULTS.scaledown_s,
      cold_start_s: COLD_START_S,
      seconds_per_frame: PER_FRAME_S,
      look_every_s: LOOK_EVERY_S,
    });
    const windows = WINDOWS_S.map((window_s) => measure(name, trace, window_s, SCALING_DEFAULTS.break_even));
    const others = BREAK_EVENS.filter((value) => value !== SCALING_DEFAULTS.break_even);
    return [...windows, ...others.map((value) => measure(name, trace, SCALING_DEFAULTS.scaledown_s, value))];
  });
}

function run(trace: Trace, scaling: ScalingOptions): ReturnType<typeof simulate> {
  const clock = { look_every_s: LOOK_EVERY_S, horizon_s: trace.at_s.at(-1) ?? 0 };
  return simulate({ trace, scaling, seconds_per_frame: PER_FRAME_S, ...clock });
}

function measure(traffic: string, trace: Trace, window_s: number, break_even: number): Point {
  const ran = run(trace, scalingOf({ scaledown_s: window_s, break_even }));
  const waits = ran.waits_s.toSorted();
  const at = (share: number): number => waits[Math.ceil(share * waits.length) - 1] ?? 0;
  const cost_usd = (rentOf(ran) / 3600) * USD_PER_HOUR;
  const point = {
    traffic,
    window_s,
    break_even,
    cost_usd,
    margin: 1 - cost_usd / (trace.length * FRAMES_PER_ROLLOUT * USD_PER_FRAME),
    starts: ran.starts,
    wait_mean_s: waits.reduce((sum, wait) => sum + wait, 0) / waits.length,
    wait_p50_s: at(0.5),
    wait_p99_s: at(0.99),
    waited_share: waits.filter((wait) => wait > ROLLOUT_S).length / waits.length,
  };
  process.stderr.write(`${traffic}, window ${window_s} s, break-even ${break_even}: $${cost_usd.toFixed(2)}\n`);
  return point;
}

/** Groups of requests, at once or evenly over a while, and the pause before each. */
type Groups = readonly { readonly pause_s: number; readonly requests: number; readonly over_s: number }[];

const traceOfGroups = (groups: Groups): Trace => {
  let at_s = 0;
  return traceOf(
    groups.flatMap(({ pause_s, requests, over_s }) => {
      const begin = at_s + pause_s;
      at_s = begin + over_s;
      return Array.from({ length: requests }, (_, n) => ({
        at_s: begin + (over_s * n) / requests,
        frames: FRAMES_PER_ROLLOUT,
        realtime: true,
        customer: "a",
      }));
    }),
  );
};

const AGAINST = ["best service", "same service"] as const;
type Against = (typeof AGAINST)[number];

/** 0 where the pool did not reach half its maximum: what one worker can be made to waste is the first line's business. */
function ratioOf(groups: Groups, scaling: ScalingOptions, against: Against): number {
  const trace = traceOfGroups(groups);
  const ran = run(trace, scaling);
  if (ran.peak_workers < scaling.maximum / 2) return 0;
  return rentOf(ran) / rentOf(against === "same service" ? ran.optimum : bestService(trace, scaling, PER_FRAME_S));
}

interface Worst {
  readonly window_s: number;
  readonly maximum: number;
  readonly against: Against;
  readonly ratio: number;
  readonly groups: Groups;
}

const GROUPS_MAX = 10;
const REQUESTS_MAX = 300;
/** Most of a climb's steps change something; the others begin anew, so that a hill that is none is left. */
const RESTART_EVERY = 100;

/** Random traces, each made a little worse as long as that succeeds. */
function search(window_s: number, maximum: number, against: Against, tries: number): Worst {
  const random = createRandom(maximum * 1_000 + window_s);
  const scaling = scalingOf({ scaledown_s: window_s, maximum });
  let worst: Worst = { window_s, maximum, against, ratio: 0, groups: [] };
  let [climber, height]: [Groups, number] = [[], 0];
  for (let n = 0; n < tries; n += 1) {
    const isNew = n % RESTART_EVERY === 0;
    const groups = isNew ? randomGroups(random, scaling) : changed(climber, random, scaling);
    const ratio = ratioOf(groups, scaling, against);
    if (isNew || ratio >= height) [climber, height] = [groups, ratio];
    if (ratio > worst.ratio) worst = { ...worst, ratio, groups };
  }
  process.stderr.write(`window ${window_s} s, at most ${maximum}, ${against}: ${worst.ratio.toFixed(3)}\n`);
  return worst;
}

/** Pauses around the moments that decide: the window, a start, both. */
function randomPause(random: Random, { scaledown_s, cold_start_s }: ScalingOptions): number {
  const marks = [0, scaledown_s, cold_start_s, scaledown_s + cold_start_s, 2 * (scaledown_s + cold_start_s)];
  const mark = marks[random.below(marks.length)] ?? 0;
  return Math.round(Math.max(0, mark + 8 * (random.next() - 0.3)) * 10) / 10;
}

const randomGroup = (random: Random, scaling: ScalingOptions): Groups[number] => ({
  pause_s: randomPause(random, scaling),
  requests: 1 + Math.floor(REQUESTS_MAX * random.next() ** 5),
  over_s: random.next() < 0.5 ? 0 : randomPause(random, scaling),
});

const randomGroups = (random: Random, scaling: ScalingOptions): Groups =>
  Array.from({ length: 1 + random.below(GROUPS_MAX) }, () => randomGroup(random, scaling));

function changed(groups: Groups, random: Random, scaling: ScalingOptions): Groups {
  const index = random.below(groups.length);
  const group = groups[index] ?? randomGroup(random, scaling);
  const way = random.below(6);
  if (way === 0 && groups.length < GROUPS_MAX) return groups.toSpliced(index, 0, randomGroup(random, scaling));
  if (way === 1 && groups.length > 1) return groups.toSpliced(index, 1);
  if (way === 2) return groups.with(index, { ...group, requests: Math.max(1, group.requests + random.below(7) - 3) });
  if (way === 3) return groups.with(index, { ...group, pause_s: randomPause(random, scaling) });
  if (way === 4) return groups.with(index, { ...group, over_s: random.below(2) * randomPause(random, scaling) });
  const pause_s = Math.max(0, Math.round((group.pause_s + 10 * (random.next() - 0.5)) * 10) / 10);
  return groups.with(index, { ...group, pause_s });
}

const points = sweep();
const tries = Number(values.tries);
const worst = [60, 70].flatMap((window_s) =>
  [1, 4, 16].flatMap((maximum) => AGAINST.map((against) => search(window_s, maximum, against, tries))),
);
const result = {
  command: `npm run bench:scaling${values.tries === "1500" ? "" : ` -- --tries ${tries}`}`,
  machine: describeMachine(),
  assumed: { ROLLOUT_S, COLD_START_S, USD_PER_HOUR, USD_PER_FRAME, LOOK_EVERY_S, HOURS },
  points,
  search: { tries, worst },
};
await writeFile("bench/results/scaling.json", `${JSON.stringify(result, null, 2)}\n`);
await writeFile("bench/results/scaling.md", markdown());

/** Of a table in Markdown. */
function row(cells: readonly (string | number)[]): string {
  return `| ${cells.join(" | ")} |`;
}

function markdown(): string {
  const sweepRows = points.map((point) =>
    row([
      point.traffic,
      `${point.window_s} s`,
      point.break_even,
      `$${point.cost_usd.toFixed(2)}`,
      `${(point.margin * 100).toFixed(1)} %`,
      point.starts,
      `${point.wait_mean_s.toFixed(1)} s`,
      `${point.wait_p50_s.toFixed(1)} s`,
      `${point.wait_p99_s.toFixed(1)} s`,
      `${(point.waited_share * 100).toFixed(1)} %`,
    ]),
  );
  const worstRows = worst.map(({ window_s, maximum, against, ratio, groups }) =>
    row([
      `${window_s} s`,
      maximum,
      against,
      `${ratio.toFixed(3)}×`,
      groups
        .map(({ pause_s, requests, over_s }) => `+${pause_s} s: ${requests}${over_s === 0 ? "" : ` over ${over_s} s`}`)
        .join(", "),
    ]),
  );
  return [
    `Made by \`${result.command}\`. ${HOURS} h of each traffic; ${ROLLOUT_S} s a rollout, ${COLD_START_S} s a cold start, $${USD_PER_HOUR} an hour.`,
    "",
    "| traffic | window | break-even | cost | margin | starts | mean wait | P50 | P99 | waited over 4 s |",
    "|---|---|---|---|---|---|---|---|---|---|",
    ...sweepRows,
    "",
    `The worst traces that ${tries} tries a line found: the policy's rent against the clairvoyant's, where the pool reached half its maximum.`,
    "",
    "| window | at most | against | ratio | pause: requests |",
    "|---|---|---|---|---|",
    ...worstRows,
    "",
  ].join("\n");
}
