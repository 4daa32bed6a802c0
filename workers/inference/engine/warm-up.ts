/**
 * One run of every graph at every batch size, on zeros, so that no customer waits for first-time allocations, and so
 * that it is known how many samples fit this machine: batches double up to the manifest's limit while there is memory
 * for the next one and it succeeds. Each is timed, which says how many rows a forward is worth having, and how many bulk
 * rows a realtime one can take along.
 */
import { GRAPH_NAMES, type GraphName, type Manifest } from "#contract/manifest.ts";

import { BundleMismatch, type Graphs, rowTensorsOf } from "./graphs.ts";
import type { RowLimits, TimedStage } from "./plan.ts";
import { sizeOf, type Tensor, zeros } from "./tensor.ts";

/** Of the memory that is there; the rest is for parked samples, encoders and the frames between them. */
const MEMORY_SHARE = 0.8;
/**
 * What bulk rows may make of a realtime forward's time. Beside any load a planner's P99 may become 1.5 times as long
 * (bench/planner-beside-bulk.ts): this is a part of it, because it also waits for forwards of bulk's, and for everything that is not
 * the engine.
 */
const FILL_SLOWDOWN_MAX = 1.2;
/** So much more a second a larger forward has to bring: less cannot be told from noise, and everybody in it waits longer. */
const WORTH_GAIN_MIN = 1.15;
/**
 * The first run of a size is slower than any later one, and any may be held up by others: a size runs up to so often, as
 * long as its runs took less than this together, and the best time counts. Large sizes run once: being taken for a little
 * dearer than they are, they are filled a little less.
 */
const RUNS_MAX = 4;
const RUNS_UNDER_MS = 800;
const TIMED_GRAPHS: Readonly<Partial<Record<GraphName, TimedStage>>> = {
  frame_encoder: "encode",
  denoiser_head: "denoise",
  denoiser_body: "denoise",
  denoiser_tail: "denoise",
  advance: "decode",
  decoder: "decode",
};

export interface MemoryGauge {
  /** What is in use, by this process or, of a device, by all; what may still be taken. */
  read(): Promise<{ readonly usedBytes: number; readonly availableBytes: number }>;
}

/** The machine's memory, or what its cgroup has of it; of a device: device.ts. */
export const processMemory: MemoryGauge = {
  read: async () => ({ usedBytes: process.memoryUsage.rss(), availableBytes: process.availableMemory() }),
};

export interface WarmUp {
  /** Rows of a forward at most. */
  readonly samplesMax: number;
  readonly fillTo: RowLimits["fillTo"];
  readonly rowsWorth: number;
  /** Why it is less than the manifest allows, or null. */
  readonly limitedBy: string | null;
}

/** Batch sizes worth warming: 1, 2, 4, 8 … and the largest itself. */
export function warmUpSizes(rowsMax: number): number[] {
  const sizes: number[] = [];
  for (let size = 1; size < rowsMax; size *= 2) sizes.push(size);
  return [...sizes, rowsMax];
}

export interface WarmUpOptions {
  readonly manifest: Manifest;
  readonly graphs: Graphs;
  /** Null where it is not known: then a failed run says what does not fit. */
  readonly memory: MemoryGauge | null;
  /** Milliseconds from any origin. */
  readonly now: () => number;
}

/** Throws what a batch of one threw, and BundleMismatch at any size. */
export async function warmUp({ manifest, graphs, memory, now }: WarmUpOptions): Promise<WarmUp> {
  const before = await memory?.read();
  const timed: Record<TimedStage, TimedForward[]> = { encode: [], decode: [], denoise: [] };
  let samplesMax = 0;
  const warm = (limitedBy: string | null): WarmUp => ({
    samplesMax,
    fillTo: { encode: fillToOf(timed.encode), decode: fillToOf(timed.decode), denoise: fillToOf(timed.denoise) },
    rowsWorth: rowsWorthOf(timed.denoise),
    limitedBy,
  });
  for (const rows of warmUpSizes(manifest.engine.max_batch_samples)) {
    if (memory && before && samplesMax > 0) {
      const { usedBytes, availableBytes } = await memory.read();
      const rowBytes = Math.max(0, usedBytes - before.usedBytes) / samplesMax;
      const needed = rowBytes * (rows - samplesMax);
      const available = availableBytes * MEMORY_SHARE;
      if (needed > available) {
        return warm(`a batch of ${rows} needs ${mib(needed)} more, ${mib(available)} are free`);
      }
    }
    try {
      const best = await bestTimes(() => runAll(manifest, graphs, rows, now));
      for (const stage of TIMED_STAGES) timed[stage].push({ rows, ms: best[stage] });
    } catch (error) {
      if (samplesMax === 0 || error instanceof BundleMismatch) throw error;
      return warm(`a batch of ${rows} failed: ${error instanceof Error ? error.message : String(error)}`);
    }
    samplesMax = rows;
  }
  return warm(null);
}

const TIMED_STAGES = ["encode", "decode", "denoise"] as const satisfies readonly TimedStage[];
type StageTimes = Record<TimedStage, number>;

async function bestTimes(run: () => Promise<StageTimes>): Promise<StageTimes> {
  const best: StageTimes = { encode: Infinity, decode: Infinity, denoise: Infinity };
  let spent = 0;
  for (let runs = 0; runs < RUNS_MAX && spent < RUNS_UNDER_MS; runs++) {
    const ms = await run();
    for (const stage of TIMED_STAGES) best[stage] = Math.min(best[stage], ms[stage]);
    spent += ms.denoise;
  }
  return best;
}

/** A stage of this many rows took this long. */
export interface TimedForward {
  readonly rows: number;
  readonly ms: number;
}

/** For each number of rows the largest one that takes not much longer; between the sizes measured, on a line. */
export function fillToOf(timed: readonly TimedForward[]): number[] {
  const msOf = (rows: number): number => {
    const above = timed.find((one) => one.rows >= rows);
    const below = timed.findLast((one) => one.rows <= rows);
    if (!above || !below || above === below) return (above ?? below)?.ms ?? 0;
    return below.ms + ((above.ms - below.ms) * (rows - below.rows)) / (above.rows - below.rows);
  };
  const rowsMax = timed.at(-1)?.rows ?? 0;
  return Array.from({ length: rowsMax + 1 }, (_, own) => {
    let rows = Math.max(1, own);
    while (rows < rowsMax && msOf(rows + 1) <= FILL_SLOWDOWN_MAX * msOf(Math.max(1, own))) rows += 1;
    return rows;
  });
}

/** The fewest rows that come near the most rows a second; of the sizes measured, 1 of none. */
export function rowsWorthOf(timed: readonly TimedForward[]): number {
  const perMs = ({ rows, ms }: TimedForward): number => rows / ms;
  const best = Math.max(...timed.map(perMs));
  return timed.find((one) => perMs(one) * WORTH_GAIN_MIN >= best)?.rows ?? 1;
}

async function runAll(manifest: Manifest, graphs: Graphs, rows: number, now: () => number): Promise<StageTimes> {
  const known = rowTensorsOf(manifest);
  // Extras have no shape in the manifest: what one graph gave is what the next one takes.
  const tensors: Record<string, Tensor> = {};
  const took: StageTimes = { encode: 0, decode: 0, denoise: 0 };
  for (const graph of GRAPH_NAMES) {
    const signature = graphs.signatures[graph];
    if (!signature) continue;
    const inputs: Record<string, Tensor> = {};
    for (const { name } of signature.inputs) {
      const want = known[name];
      const tensor = want ? zeros(want.type, [rows, ...want.dims]) : tensors[name];
      if (!tensor) throw new BundleMismatch(`${graph} takes ${name}, which no graph before it gave`);
      inputs[name] = tensor;
    }
    const startedAt = now();
    const outputs = await graphs.run(graph, inputs);
    const stage = TIMED_GRAPHS[graph];
    if (stage) took[stage] += now() - startedAt;
    for (const [name, tensor] of Object.entries(outputs)) {
      const want = known[name];
      if (sizeOf(tensor.dims.slice(0, 1)) !== rows || (want && sizeOf(tensor.dims) !== rows * sizeOf(want.dims))) {
        throw new BundleMismatch(
          `${graph} gave ${name} as [${tensor.dims.join(", ")}] for a batch of ${rows}` +
            (want ? `, expected [${[rows, ...want.dims].join(", ")}]` : ""),
        );
      }
      tensors[name] = tensor;
    }
  }
  return took;
}

const mib = (bytes: number): string => `${Math.ceil(bytes / 2 ** 20)} MiB`;
