/**
 * Is the default of engine/session-tuning.ts the right one? It is held against other numbers of threads, with and without
 * spinning, and against one other choice at a time of the rest, on the bare engine:
 *
 *   alone           one rollout
 *   full batch      as many candidates as the engine takes
 *   beside ffmpeg   one rollout while a video of 640 × 480 is being encoded, as the worker encodes (one thread)
 *
 * In a round each variant has its turn, on an engine that is started for it, so that the memory of all need not be there at
 * once; the order rotates from round to round, so that what disturbs the machine hits all alike. `× default` is the median over
 * rounds of the round's own ratio: above 1 the default is faster. The wait is the 99th percentile of how late the main thread,
 * which renews locks and feeds ffmpeg, comes to its turn beside ffmpeg.
 *
 * Environment: BUNDLES (folders), THREADS (numbers of threads; default 1, 2, 4 … and all cores), SAMPLES (of a full batch;
 * default 4), ACTIONS (of a rollout; default one chunk), STEPS (default 2), ROUNDS (3), BENCH=short (a smoke run), RESULTS.
 *
 * Writes threads.md and .json to bench/results; there is no limit to keep. `npm run bench:threads`
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { availableParallelism } from "node:os";
import { monitorEventLoopDelay } from "node:perf_hooks";

import type { Engine } from "#workers/inference/engine/engine.ts";
import { defaultTuning, type SessionTuning } from "#workers/inference/engine/session-tuning.ts";
import { warmUpSizes } from "#workers/inference/engine/warm-up.ts";
import { findFfmpeg } from "#workers/inference/video/ffmpeg-path.ts";

import { type Bundle, dreamOn, readBundles, requestOf, startOn } from "./bundle-engine.ts";
import { type HeldOutRollout, loadHeldOut } from "./held-out.ts";
import { median } from "./machine.ts";
import { progress } from "./peers/measure.ts";
import { numberOf, numbersOf, writeReport } from "./settings.ts";

const SHORT = process.env["BENCH"] === "short";
const CORES = availableParallelism();
/** 1, 2, 4 … and all of them. */
const THREADS = numbersOf("THREADS", warmUpSizes(CORES));
const SAMPLES = numberOf("SAMPLES", SHORT ? 2 : 4);
const STEPS = numberOf("STEPS", SHORT ? 1 : 2);
const ROUNDS = numberOf("ROUNDS", SHORT ? 1 : 3);
const NS_PER_MS = 1e6;

const SCENARIOS = ["alone", "full batch", "beside ffmpeg"] as const;
type Scenario = (typeof SCENARIOS)[number];

interface Turn {
  readonly wallMs: Readonly<Record<Scenario, number>>;
  readonly mainThreadWaitMs: number;
}

interface Variant {
  readonly name: string;
  readonly tuning: SessionTuning;
}

interface Figures extends Variant {
  readonly turns: readonly Turn[];
}

/** The default first; of the others none twice. */
function variants(): Variant[] {
  const usual = defaultTuning(CORES);
  const threads = THREADS.flatMap((count) =>
    // One thread waits for nobody.
    (count === 1 ? [false] : [false, true]).map((spinning) => ({ ...usual, threads: count, spinning })),
  ).filter((tuning) => tuning.threads !== usual.threads || tuning.spinning !== (usual.spinning && usual.threads > 1));
  return [
    { name: `default: ${nameOf(usual)}`, tuning: usual },
    ...threads.map((tuning) => ({ name: nameOf(tuning), tuning })),
    ...(["extended", "basic", "disabled"] as const).map((optimisation) => ({
      name: `graph optimisation ${optimisation}`,
      tuning: { ...usual, optimisation },
    })),
    { name: "independent operators at once", tuning: { ...usual, execution: "parallel" } },
    { name: "no memory arena", tuning: { ...usual, arena: false } },
    { name: "no memory pattern", tuning: { ...usual, memoryPattern: false } },
  ];
}

function nameOf({ threads, spinning }: SessionTuning): string {
  return threads === 1 ? "1 thread" : `${threads} threads${spinning ? ", spinning" : ""}`;
}

async function main(): Promise<void> {
  const ffmpegPath = await findFfmpeg(undefined);
  const lines: string[] = [];
  const figures: Record<string, readonly Figures[]> = {};
  for (const bundle of await readBundles(process.env)) {
    const { slug } = bundle.manifest;
    const measured = await measure(bundle, ffmpegPath);
    figures[slug] = measured;
    lines.push(`## ${slug}`, "", ...tableOf(measured), "");
  }
  await writeReport({
    name: "threads",
    title: "Threads and settings of ONNX Runtime",
    how: `One rollout of one chunk, ${STEPS} steps, guidance 0; a full batch is of ${SAMPLES} samples; median of ${ROUNDS} rounds in which all take turns.`,
    lines,
    figures: { cores: CORES, samples: SAMPLES, steps: STEPS, bundles: figures },
  });
}

async function measure(bundle: Bundle, ffmpegPath: string): Promise<Figures[]> {
  const { manifest } = bundle;
  const actions = numberOf("ACTIONS", manifest.shapes.chunk_size);
  const [rollout] = await loadHeldOut(manifest, { count: 1, actions });
  if (!rollout) throw new Error("bench/held-out has no rollout");
  const measured = variants().map((variant) => ({ ...variant, turns: [] as Turn[] }));
  for (let round = 0; round < ROUNDS; round++) {
    for (const { name, tuning, turns } of [...measured.slice(round), ...measured.slice(0, round)]) {
      const engine = await startOn(bundle, { samplesMax: SAMPLES, tuning });
      try {
        await dreamOnce(engine, rollout, 1); // its prompt and schedule are known from now on
        turns.push(await turnOf(engine, rollout, ffmpegPath));
      } finally {
        await engine.stop();
      }
      progress(`${manifest.slug}: round ${round + 1} of ${ROUNDS}: ${name}`);
    }
  }
  return measured;
}

async function turnOf(engine: Engine, rollout: HeldOutRollout, ffmpegPath: string): Promise<Turn> {
  const alone = await dreamOnce(engine, rollout, 1);
  const full = await dreamOnce(engine, rollout, engine.samplesMax);

  const encoder = startEncoder(ffmpegPath);
  await encoder.running;
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  const beside = await dreamOnce(engine, rollout, 1);
  delay.disable();
  await encoder.stop();
  return {
    wallMs: { alone, "full batch": full, "beside ffmpeg": beside },
    mainThreadWaitMs: delay.percentile(99) / NS_PER_MS,
  };
}

/** Resolves with the engine's milliseconds. */
async function dreamOnce(engine: Engine, rollout: HeldOutRollout, candidates: number): Promise<number> {
  const actions = Array<Float32Array>(candidates).fill(rollout.actions);
  const request = requestOf(rollout, { numSteps: STEPS, guidance: 0, actions });
  return (await dreamOn(engine, request)).engineWallMs;
}

/** Encodes a test picture until it is stopped. */
function startEncoder(ffmpegPath: string) {
  const input = ["-f", "lavfi", "-i", "testsrc=size=640x480:rate=30"];
  const output = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-threads", "1", "-f", "null", "-"];
  const child = spawn(ffmpegPath, ["-nostdin", ...input, ...output], { stdio: ["ignore", "ignore", "pipe"] });
  const exited = once(child, "exit");
  let text = "";
  const running = new Promise<void>((resolve, reject) => {
    child.stderr.setEncoding("utf8").on("data", (piece: string) => {
      text += piece;
      if (text.includes("frame=")) resolve(); // its first report
    });
    child.once("exit", () => reject(new Error(`ffmpeg ended: ${text}`)));
  });
  return {
    running,
    async stop(): Promise<void> {
      child.kill("SIGKILL");
      await exited;
    },
  };
}

function tableOf(measured: readonly Figures[]): string[] {
  const [usual] = measured;
  const rowOf = ({ name, turns }: Figures): string => {
    const cells = SCENARIOS.flatMap((scenario) => {
      const ratios = turns.map(
        ({ wallMs }, round) => wallMs[scenario] / (usual?.turns[round]?.wallMs[scenario] ?? Number.NaN),
      );
      return [median(turns.map(({ wallMs }) => wallMs[scenario])).toFixed(0), median(ratios).toFixed(2)];
    });
    const wait = median(turns.map(({ mainThreadWaitMs }) => mainThreadWaitMs)).toFixed(1);
    return `| ${[name, ...cells, wait].join(" | ")} |`;
  };
  const columns = SCENARIOS.flatMap((scenario) => [`${scenario}, ms`, "× default"]);
  return [
    `| | ${columns.join(" | ")} | main thread waits, ms |`,
    `|---${"|---".repeat(columns.length + 1)}|`,
    ...measured.map(rowOf),
  ];
}

await main();
