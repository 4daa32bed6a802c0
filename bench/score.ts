/**
 * What `score: true` costs a frame: PSNR, SSIM and LPIPS at the size of the reference bundle and at 480 × 640, as the worker
 * computes them (one thread), and LPIPS in runs of several frames, which says how much larger runs would save. Processor time
 * of this process, the median over runs; the two sizes and the run lengths take turns. There is no limit to keep.
 *
 * Prints its tables and writes bench/results/score.md and .json. `npm run bench:score`
 */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";

import * as ort from "onnxruntime-node";

import { createLpips } from "#workers/inference/score/lpips.ts";
import { psnrOf } from "#workers/inference/score/psnr.ts";
import { ssimOf } from "#workers/inference/score/ssim.ts";

import { describeMachine, median } from "./machine.ts";

const MODEL = "models/lpips/lpips-alex";
const SIZES = [
  { height: 96, width: 96, frames: 48 },
  { height: 480, width: 640, frames: 2 },
] as const;
const ROUNDS = 9;
/** Not counted: compilation, and the memory of a first run. */
const WARM_UP = 2;
const FRAMES_PER_RUN = [1, 2, 4, 8, 16] as const;

interface Timed {
  readonly name: string;
  /** Milliseconds of processor time a frame. */
  readonly samples: number[];
  run(): Promise<void> | void;
  readonly frames: number;
}

/** Some picture and one a little off; the metrics' cost does not depend on what is in them. */
function makeVideos(bytes: number): { reference: Uint8Array; candidate: Uint8Array } {
  const reference = Uint8Array.from(
    { length: bytes },
    (_, i) => 128 + 90 * Math.sin(i / 40) + 30 * Math.cos(i / 1_777),
  );
  return { reference, candidate: reference.map((level, i) => level ^ (i % 7)) };
}

async function takeTurns(timed: readonly Timed[]): Promise<void> {
  for (let round = 0; round < WARM_UP + ROUNDS; round++) {
    for (const one of timed) {
      const before = process.cpuUsage();
      await one.run();
      const { user, system } = process.cpuUsage(before);
      if (round >= WARM_UP) one.samples.push((user + system) / 1_000 / one.frames);
    }
  }
}

function eachFrame(frames: number, frameBytes: number, metric: (start: number, end: number) => number): () => void {
  return () => {
    for (let frame = 0; frame < frames; frame++) metric(frame * frameBytes, (frame + 1) * frameBytes);
  };
}

async function main(): Promise<void> {
  const lpips = createLpips({ model: `${MODEL}.json`, providers: ["cpu"] });
  const metrics = SIZES.map((shape): Record<"psnr" | "ssim" | "lpips", Timed> => {
    const { height, width, frames } = shape;
    const frameBytes = height * width * 3;
    const { reference: a, candidate: b } = makeVideos(frames * frameBytes);
    const timed = (name: string, run: Timed["run"]): Timed => ({ name, samples: [], run, frames });
    return {
      psnr: timed(
        "PSNR",
        eachFrame(frames, frameBytes, (from, to) => psnrOf(a.subarray(from, to), b.subarray(from, to))),
      ),
      ssim: timed(
        "SSIM",
        eachFrame(frames, frameBytes, (from, to) => ssimOf(a.subarray(from, to), b.subarray(from, to), height, width)),
      ),
      lpips: timed("LPIPS", async () => void (await lpips.distances(a, b, shape))),
    };
  });

  const session = await ort.InferenceSession.create(`${MODEL}.onnx`, { intraOpNumThreads: 1, interOpNumThreads: 1 });
  const [{ height, width }] = SIZES;
  const runs = FRAMES_PER_RUN.map((frames): Timed => {
    const videos = makeVideos(frames * height * width * 3);
    const tensor = (video: Uint8Array) => new ort.Tensor("uint8", video, [frames, height, width, 3]);
    const feeds = { reference: tensor(videos.reference), candidate: tensor(videos.candidate) };
    return { name: String(frames), samples: [], frames, run: async () => void (await session.run(feeds)) };
  });

  await takeTurns([...metrics.flatMap((timed) => Object.values(timed)), ...runs]);
  await session.release();
  await lpips.release();
  await report(metrics, runs);
}

const ms = ({ samples }: Timed): string => median(samples).toFixed(2);

async function report(metrics: readonly Record<string, Timed>[], runs: readonly Timed[]): Promise<void> {
  const machine = describeMachine();
  const alone = median(runs[0]?.samples ?? []);
  const lines = [
    "# What a score costs",
    "",
    `\`npm run bench:score\` on ${machine.cpu}, ${machine.cores} cores, ${machine.memory_gib} GiB, Node ${machine.node}.`,
    `Milliseconds of processor time a frame, one thread, median of ${ROUNDS} rounds in which all take turns.`,
    "",
    "| frames of | PSNR | SSIM | LPIPS (AlexNet) |",
    "|---|---|---|---|",
    ...SIZES.map(({ height, width }, i) => {
      const row = Object.values(metrics[i] ?? {}).map(ms);
      return `| ${height} × ${width} | ${row.join(" | ")} |`;
    }),
    "",
    `LPIPS at ${SIZES[0].height} × ${SIZES[0].width}, several frames in one run of the graph:`,
    "",
    "| frames a run | ms a frame | of one frame alone |",
    "|---|---|---|",
    ...runs.map((run) => `| ${run.name} | ${ms(run)} | ${(median(run.samples) / alone).toFixed(2)} |`),
  ];
  console.log(lines.join("\n"));
  const results = join(import.meta.dirname, "results");
  await mkdir(results, { recursive: true });
  await writeFile(join(results, "score.md"), `${lines.join("\n")}\n`);
  const figures = {
    machine,
    metrics: SIZES.map((size, i) => ({
      ...size,
      ms: Object.fromEntries(Object.entries(metrics[i] ?? {}).map(([metric, { samples }]) => [metric, samples])),
    })),
    runs: runs.map(({ frames, samples }) => ({ frames, ms: samples })),
  };
  await writeFile(join(results, "score.json"), `${JSON.stringify(figures, null, 2)}\n`);
}

await main();
