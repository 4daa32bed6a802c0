/** `dream-engine simulate`: what a pool would have cost and how long people would have waited, under this policy and others. */
import { readFile, writeFile } from "node:fs/promises";

import { type Command, InvalidArgumentError, Option } from "commander";

import { SCALING_DEFAULTS } from "#scheduler/scaling/policy.ts";
import { compare, type Comparison, type Row, type Waits } from "#scheduler/simulate/compare.ts";
import { parseTrace, TraceError, type Trace } from "#scheduler/simulate/trace.ts";
import { FRAMES_PER_ROLLOUT, generate, type Workload, WORKLOADS } from "#scheduler/simulate/workloads.ts";

import { createBar } from "../bars.ts";
import { printJson, printTable } from "../print.ts";
import { simulationSvg } from "../simulation-plot.ts";
import { UserError } from "../user-error.ts";
import { cannotRead, userPath } from "../user-path.ts";

interface SimulateOptions {
  readonly workload: Workload;
  readonly trace?: string;
  readonly frames: number;
  readonly hours: number;
  readonly seed: number;
  readonly window: number;
  readonly coldStart: number;
  readonly breakEven: number;
  readonly minimum: number;
  readonly maximum: number;
  readonly warm: number;
  readonly rolloutSeconds: number;
  readonly lookEvery: number;
  readonly gpuHour: number;
  readonly priceMils: number;
  readonly svg?: string;
  readonly json?: true;
}

/** More takes a machine's memory, and minutes. */
const FRAMES_MAX = 1_000_000_000;
const HOURS_MAX = 24 * 366;
const WORKERS_MAX = 100_000;
const USD_PER_MIL = 0.0001;
const TRACE_EXAMPLE = '{"at_s": 0.5, "frames": 49, "k": 8}';

export function addSimulate(program: Command): void {
  program
    .command("simulate")
    .description("replay a trace through the scaling policy under a simulated clock, beside other policies")
    .addOption(new Option("--workload <shape>", "traffic to make up").choices(WORKLOADS).default("bursty"))
    .option("--trace <file>", `replay this instead: JSON lines such as ${TRACE_EXAMPLE}`)
    .option("--frames <n>", "frames of a made-up trace, all candidates counted", whole(1, FRAMES_MAX), 1_000_000)
    .option("--hours <n>", "how long it is", number(0.01, HOURS_MAX), 24)
    .option("--seed <n>", "of its randomness", whole(0, 2 ** 32 - 1), 1)
    .option("--window <seconds>", "scaledown window", number(0, 86_400), SCALING_DEFAULTS.scaledown_s)
    .option("--cold-start <seconds>", "from a worker's start to ready", number(0, 3600), 70)
    .option(
      "--break-even <n>",
      "work a started worker must find, in cold starts",
      number(0, 100),
      SCALING_DEFAULTS.break_even,
    )
    .option("--minimum <workers>", "kept whatever comes", whole(0, WORKERS_MAX), SCALING_DEFAULTS.minimum)
    .option("--maximum <workers>", "never more", whole(1, WORKERS_MAX), 64)
    .option("--warm <workers>", "of the policy that is always warm", whole(1, WORKERS_MAX), 1)
    .option("--rollout-seconds <n>", `of a warm worker, for ${FRAMES_PER_ROLLOUT} frames`, number(0.001, 3600), 4)
    .option("--look-every <seconds>", "pause of the scaler between two looks", number(0.1, 3600), 1)
    .option("--gpu-hour <usd>", "rent of a worker", number(0, 1000), 3.95)
    .option("--price-mils <n>", "price of a frame; 1 mil is $0.0001", number(0.0001, 1_000_000), 5)
    .option("--svg <file>", "also draw the pool's size over time")
    .option("--json", "print JSON on stdout")
    .action(run);
}

async function run(options: SimulateOptions): Promise<void> {
  if (options.minimum > options.maximum || options.warm > options.maximum) {
    throw new UserError(
      `--minimum ${options.minimum} and --warm ${options.warm} have to be at most --maximum ${options.maximum}.`,
    );
  }
  const seconds_per_frame = options.rolloutSeconds / FRAMES_PER_ROLLOUT;
  const trace = options.trace === undefined ? madeUp(options, seconds_per_frame) : await readTrace(options.trace);
  const bar = createBar("  simulating {bar} {percentage} % · {eta_formatted} left", 100);
  const begun = performance.now();
  const comparison = compare({
    trace,
    scaling: {
      minimum: options.minimum,
      maximum: options.maximum,
      scaledown_s: options.window,
      cold_start_s: options.coldStart,
      break_even: options.breakEven,
      samples_per_worker: 1,
      always_warm: null,
    },
    seconds_per_frame,
    look_every_s: options.lookEvery,
    horizon_s: options.trace === undefined ? options.hours * 3600 : (trace.at_s.at(-1) ?? 0),
    warm_workers: options.warm,
    usd_per_hour: options.gpuHour,
    price_usd_per_frame: options.priceMils * USD_PER_MIL,
    onProgress: (share) => bar.update(Math.floor(share * 100)),
  });
  const took_s = (performance.now() - begun) / 1000;
  bar.stop();
  if (options.svg !== undefined) await writeSvg(userPath(options.svg), comparison, titleOf(options));
  if (options.json) printRun(comparison, options, took_s);
  else printForPeople(comparison, options, took_s);
}

function madeUp(
  { workload, frames, hours, seed, window, coldStart, lookEvery }: SimulateOptions,
  perFrame: number,
): Trace {
  return generate(workload, {
    frames,
    hours,
    seed,
    scaledown_s: window,
    cold_start_s: coldStart,
    seconds_per_frame: perFrame,
    look_every_s: lookEvery,
  });
}

async function readTrace(name: string): Promise<Trace> {
  const path = userPath(name);
  const text = await readFile(path, "utf8").catch((error: unknown) => {
    throw cannotRead(path, error);
  });
  try {
    return parseTrace(text);
  } catch (error) {
    if (error instanceof TraceError) throw new UserError(`${path}: ${error.message}.`, { cause: error });
    throw error;
  }
}

async function writeSvg(path: string, comparison: Comparison, title: string): Promise<void> {
  await writeFile(path, simulationSvg(comparison, title)).catch((error: unknown) => {
    throw new UserError(`Cannot write ${path}: ${error instanceof Error ? error.message : String(error)}.`, {
      cause: error,
    });
  });
}

const titleOf = ({ trace, workload, window }: SimulateOptions): string =>
  `${trace ?? workload}: workers over time, window ${window} s`;

function printRun({ requests, frames, revenue_usd, rows }: Comparison, options: SimulateOptions, took_s: number): void {
  const { json: _json, svg: _svg, ...asked } = options;
  printJson({ options: asked, requests, frames, revenue_usd, took_s, policies: rows });
}

function printForPeople(comparison: Comparison, options: SimulateOptions, took_s: number): void {
  const { requests, frames, revenue_usd, rows } = comparison;
  const source = options.trace ?? `${options.workload}, seed ${options.seed}, ${options.hours} h`;
  console.log(
    `${source}: ${requests.toLocaleString("en")} requests, ${frames.toLocaleString("en")} frames, ` +
      `revenue $${revenue_usd.toFixed(2)}; simulated in ${took_s.toFixed(1)} s`,
  );
  printTable(
    ["POLICY", "COST", "MARGIN", "STARTS", "STARTING", "IDLE", "WAIT P50", "P99", "REALTIME P99", "PEAK", "× OPTIMUM"],
    rows.map(cellsOf),
  );
  console.log(
    "STARTING and IDLE are parts of the cost. × OPTIMUM: of the least that the same service, request by request, can cost.",
  );
}

function cellsOf(row: Row): string[] {
  return [
    row.policy,
    `$${row.cost_usd.toFixed(2)}`,
    percent(row.margin),
    String(row.starts),
    percent(row.starting_share),
    percent(row.idle_share),
    seconds(row.wait_s, "p50"),
    seconds(row.wait_s, "p99"),
    seconds(row.realtime_wait_s, "p99"),
    String(row.peak_workers),
    row.times_optimum.toFixed(2),
  ];
}

const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;
const seconds = (waits: Waits | null, which: keyof Waits): string =>
  waits === null ? "" : `${waits[which].toFixed(1)} s`;

function number(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() !== "" && value >= least && value <= most) return value;
    throw new InvalidArgumentError(`expected a number from ${least} to ${most}`);
  };
}

/** `1e8` is a whole number, too. */
function whole(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() !== "" && Number.isInteger(value) && value >= least && value <= most) return value;
    throw new InvalidArgumentError(`expected a whole number from ${least} to ${most}`);
  };
}
