import { Registry } from "prom-client";
import { expect, test } from "vitest";

import { createCounters } from "#workers/inference/engine/counters.ts";
import { createWorkerMetrics } from "#workers/inference/metrics.ts";

test("what the optimisations and the lanes did is on /metrics, as of the scrape", async () => {
  const stats = createCounters();
  const registry = new Registry();
  createWorkerMetrics(registry, "tiny", { stats, samplesMax: 6 });
  Object.assign(stats, {
    teacache_rows_computed: 7,
    teacache_rows_skipped: 3,
    guidance_rows_saved: 20,
    timestep_lut_hits: 21,
    text_cache_hits: 5,
    text_cache_misses: 2,
    samples_parked: 4,
    samples_resumed: 1,
  });
  stats.rows.denoiser_body_unfused = 9;
  const text = await registry.metrics();
  for (const line of [
    'dream_inference_teacache_rows_total{model="tiny",body="computed"} 7',
    'dream_inference_teacache_rows_total{model="tiny",body="skipped"} 3',
    'dream_inference_rows_saved_total{model="tiny",by="guidance_shortcut"} 20',
    'dream_inference_rows_saved_total{model="tiny",by="timestep_lut"} 21',
    'dream_inference_text_cache_total{model="tiny",result="hit"} 5',
    'dream_inference_text_cache_total{model="tiny",result="miss"} 2',
    'dream_inference_bulk_parking_total{model="tiny",event="parked"} 4',
    'dream_inference_bulk_parking_total{model="tiny",event="resumed"} 1',
    'dream_inference_graph_rows_total{model="tiny",graph="denoiser_body_unfused"} 9',
    'dream_inference_samples_max{model="tiny"} 6',
  ]) {
    expect(text).toContain(line);
  }
});
