/** What a worker process shows on /metrics beside Node's own. */
import { Counter, Gauge, Histogram, type Registry } from "prom-client";

import type { Timings } from "#contract/jobs.ts";

import type { Engine } from "./engine/engine.ts";

/** How a job left this worker: an outcome, one of the two ways back into the queue, or to another worker. */
type JobEnd = "succeeded" | "failed" | "cancelled" | "expired" | "put_back" | "retried_alone" | "lost";

export interface WorkerMetrics {
  jobEnded(end: JobEnd): void;
  timed(timings: Timings): void;
  /** A scored rollout's base run is through the engine. */
  baseRun(wallMs: number): void;
  /** The two videos of a scored rollout were compared. */
  scored(tookMs: number): void;
}

/** From a warm rollout of the small model to the longest of a large one. */
const SECONDS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300];

export function createWorkerMetrics(
  registry: Registry,
  model: string,
  engine: Pick<Engine, "stats" | "samplesMax">,
): WorkerMetrics {
  const registers = [registry];
  const jobs = new Counter({
    name: "dream_inference_jobs_total",
    help: "Jobs by how they left this worker",
    labelNames: ["model", "end"],
    registers,
  });
  const engineWall = new Histogram({
    name: "dream_inference_engine_wall_seconds",
    help: "First forward to last decoded frame of a rollout",
    labelNames: ["model"],
    buckets: SECONDS,
    registers,
  });
  const encode = new Histogram({
    name: "dream_inference_encode_seconds",
    help: "From the engine's end of a rollout to its videos being stored",
    labelNames: ["model"],
    buckets: SECONDS,
    registers,
  });
  const baseRun = new Histogram({
    name: "dream_inference_base_run_seconds",
    help: "First forward to last decoded frame of a scored rollout's run by the base spec",
    labelNames: ["model"],
    buckets: SECONDS,
    registers,
  });
  const scoring = new Histogram({
    name: "dream_inference_scoring_seconds",
    help: "Comparing the videos of a scored rollout, with its wait for the scoring process",
    labelNames: ["model"],
    buckets: SECONDS,
    registers,
  });
  // The engine counts by itself, in its thread; these show its numbers at the time of the scrape.
  registerStat("dream_inference_graph_runs_total", "Runs of each graph", "graph", () => engine.stats.runs);
  registerStat("dream_inference_graph_rows_total", "Rows in the runs of each graph", "graph", () => engine.stats.rows);
  registerStat(
    "dream_inference_denoise_forwards_total",
    "Denoising forwards by the number of samples that shared them",
    "samples",
    () => engine.stats.denoise_batches,
  );
  registerStat(
    "dream_inference_teacache_rows_total",
    "Denoiser rows under TeaCache by what became of them",
    "body",
    () => ({
      computed: engine.stats.teacache_rows_computed,
      skipped: engine.stats.teacache_rows_skipped,
    }),
  );
  registerStat("dream_inference_text_cache_total", "Look-ups of a rollout's text tensors", "result", () => ({
    hit: engine.stats.text_cache_hits,
    miss: engine.stats.text_cache_misses,
  }));
  registerStat("dream_inference_bulk_parking_total", "Bulk samples that made way for realtime ones", "event", () => ({
    parked: engine.stats.samples_parked,
    resumed: engine.stats.samples_resumed,
  }));
  registerStat("dream_inference_rows_saved_total", "Rows of graphs that an optimisation made needless", "by", () => ({
    guidance_shortcut: engine.stats.guidance_rows_saved,
    timestep_lut: engine.stats.timestep_lut_hits,
  }));
  const samplesMax = new Gauge({
    name: "dream_inference_samples_max",
    help: "Samples of a lane that this worker's engine holds at once, as found at warm-up",
    labelNames: ["model"],
    registers,
  });
  samplesMax.set({ model }, engine.samplesMax);

  function registerStat(name: string, help: string, label: string, read: () => Record<string, number>): void {
    const counter = new Counter({
      name,
      help,
      labelNames: ["model", label],
      registers,
      collect() {
        counter.reset();
        for (const [key, value] of Object.entries(read())) counter.inc({ model, [label]: key }, value);
      },
    });
  }

  return {
    jobEnded: (end) => jobs.inc({ model, end }),
    timed(timings) {
      engineWall.observe({ model }, timings.engine_wall_ms / 1000);
      encode.observe({ model }, timings.encode_ms / 1000);
    },
    baseRun: (wallMs) => baseRun.observe({ model }, wallMs / 1000),
    scored: (tookMs) => scoring.observe({ model }, tookMs / 1000),
  };
}
