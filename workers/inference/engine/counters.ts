/** What the engine did since it started: plain numbers, written by the engine thread, read by tests, bench and metrics. */
import { GRAPH_NAMES, type GraphName } from "#contract/manifest.ts";

export interface EngineCounters {
  /** Runs of each graph, and the rows (samples, twice where guidance needs both passes) in them. */
  readonly runs: Record<GraphName, number>;
  readonly rows: Record<GraphName, number>;
  /** Denoising forwards by their number of samples: `denoise_batches[8]` forwards held 8. */
  readonly denoise_batches: Record<number, number>;
  samples_admitted: number;
  samples_finished: number;
  /** Of prompts beside the empty one, which is always there. */
  text_cache_hits: number;
  text_cache_misses: number;
}

export type EngineStats = Readonly<EngineCounters>;

// The cast is Object.fromEntries' loss of key types; GRAPH_NAMES holds every one.
const zeroOfEach = () => Object.fromEntries(GRAPH_NAMES.map((graph) => [graph, 0])) as Record<GraphName, number>;

export function createCounters(): EngineCounters {
  return {
    runs: zeroOfEach(),
    rows: zeroOfEach(),
    denoise_batches: {},
    samples_admitted: 0,
    samples_finished: 0,
    text_cache_hits: 0,
    text_cache_misses: 0,
  };
}
