/** What the engine did since it started: plain numbers, written by the engine thread, read by tests, bench and metrics. */
import { GRAPH_NAMES, type GraphName } from "#contract/manifest.ts";

export interface EngineCounters {
  /** Runs of each graph, and the rows (samples, twice where guidance needs both passes) in them. */
  readonly runs: Record<GraphName, number>;
  readonly rows: Record<GraphName, number>;
  /** Forwards of the denoiser's body by their number of samples: `denoise_batches[8]` forwards held 8. */
  readonly denoise_batches: Record<number, number>;
  samples_admitted: number;
  samples_finished: number;
  /** Bulk samples that a realtime one took the place of between two steps, and those that went on afterwards. */
  samples_parked: number;
  samples_resumed: number;
  /** Rows under TeaCache that ran the body, and those that took a cached residual instead. */
  teacache_rows_computed: number;
  teacache_rows_skipped: number;
  /** Unconditional passes that guidance 0 made needless. */
  guidance_rows_saved: number;
  /** Denoising rows whose timestep rows came from the table. */
  timestep_lut_hits: number;
  /** Look-ups of a prompt's (or the null sequence's) text, one a rollout. */
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
    samples_parked: 0,
    samples_resumed: 0,
    teacache_rows_computed: 0,
    teacache_rows_skipped: 0,
    guidance_rows_saved: 0,
    timestep_lut_hits: 0,
    text_cache_hits: 0,
    text_cache_misses: 0,
  };
}
