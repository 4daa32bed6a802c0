/** What a runner counts, and what it reads off the datasets for others to watch. */
import { Counter, Gauge, Histogram, type Registry } from "prom-client";

import type { Sql } from "#platform/database.ts";

export type RunnerMetrics = ReturnType<typeof createRunnerMetrics>;

export function createRunnerMetrics(registry: Registry) {
  const registers = [registry];
  return {
    rows: new Counter({
      name: "dream_dataset_rows_total",
      help: "Rows of datasets that this process saw end, by how; refused: failed before anything was charged",
      labelNames: ["outcome"] as const,
      registers,
    }),
    fed: new Counter({
      name: "dream_dataset_rows_fed_total",
      help: "Rows of datasets that this process paid for and queued",
      registers,
    }),
    // Without labels, so that it is there from the start: the first one must show as a rise.
    videosLost: new Counter({
      name: "dream_dataset_videos_lost_total",
      help: "Rows of datasets that failed because their finished video was not in the blob store any more",
      registers,
    }),
    steps: new Histogram({
      name: "dream_dataset_step_seconds",
      help: "Time of one step of work on a dataset: collect, prepare (inputs fetched and stored), feed (the debit), retry (rows put back), finish",
      labelNames: ["step"] as const,
      buckets: [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100],
      registers,
    }),
    datasets: new Gauge({
      name: "dream_datasets",
      help: "Datasets that have not ended, by state and by what a pause waits for",
      labelNames: ["state", "pause_reason"] as const,
      registers,
    }),
  };
}

/** The same figures in every runner: `max()` over them. */
export async function showDatasets(sql: Sql, { datasets }: Pick<RunnerMetrics, "datasets">): Promise<void> {
  const rows = await sql.query<{ state: string; pause_reason: string | null; count: number }>(
    `SELECT state, pause_reason, count(*)::int AS count FROM datasets WHERE finished_at IS NULL GROUP BY state, pause_reason`,
  );
  datasets.reset();
  for (const { state, pause_reason, count } of rows) datasets.set({ state, pause_reason: pause_reason ?? "" }, count);
}
