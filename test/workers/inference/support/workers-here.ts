/** Inference workers in the test's own process, each with a real engine of its own. */
import { Registry } from "prom-client";

import type { BlobStore } from "#blobs/blob-store.ts";
import type { Manifest, OptimisationName } from "#contract/manifest.ts";
import { systemClock } from "#platform/clock.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { silentLog } from "#test/support/postgres.ts";
import { type Engine, startEngine } from "#workers/inference/engine/engine.ts";
import { createWorkerMetrics } from "#workers/inference/metrics.ts";
import { type Scorer, startScorer } from "#workers/inference/score/scorer.ts";
import { findFfmpeg } from "#workers/inference/video/ffmpeg-path.ts";
import { type InferenceWorker, startInferenceWorker } from "#workers/inference/worker.ts";

interface WorkerHere {
  readonly engine: Engine;
  readonly worker: InferenceWorker;
  readonly scorer: Scorer;
  readonly registry: Registry;
}

/** For an attempt that is run without a worker, and not scored. */
export const unscored = {
  scorer: startScorer({ lpipsModel: "none", log: silentLog }),
  metrics: { baseRun: () => undefined, scored: () => undefined },
};

export interface WorkersHere {
  start(changes?: {
    readonly ffmpegPath?: string;
    readonly blobs?: BlobStore;
    readonly optimisations?: readonly OptimisationName[];
    readonly wrapScorer?: (scorer: Scorer) => Scorer;
  }): Promise<WorkerHere>;
  /** Those that were started since the last call. */
  stop(): Promise<void>;
}

export function createWorkersHere(parts: {
  readonly manifest: Manifest;
  readonly bundleDir: string;
  readonly queues: QueueSystem;
  readonly blobs: BlobStore;
}): WorkersHere {
  const { manifest, bundleDir } = parts;
  const running: WorkerHere[] = [];
  const log = silentLog;
  return {
    async start({ optimisations, wrapScorer = (own: Scorer) => own, ...changes } = {}) {
      const providers = ["cpu"];
      const rowsWorth = manifest.engine.max_batch_samples; // not what a busy machine makes of it
      const fixed = { bundleDir, manifest, providers, rowsWorth, runTimeoutMs: 20_000, log };
      const engine = await startEngine({ ...fixed, optimisations });
      const registry = new Registry();
      const metrics = createWorkerMetrics(registry, manifest.slug, engine);
      const scorer = startScorer({ lpipsModel: "models/lpips/lpips-alex.json", log });
      const ffmpegPath = await findFfmpeg(undefined);
      const worker = await startInferenceWorker({
        ...parts,
        engine,
        scorer: wrapScorer(scorer),
        ffmpegPath,
        clock: systemClock,
        log,
        metrics,
        ...changes,
      });
      const here = { engine, worker, scorer, registry };
      running.push(here);
      return here;
    },
    async stop() {
      for (const { engine, worker, scorer } of running.splice(0)) {
        await worker.stop();
        await scorer.stop();
        await engine.stop();
      }
    },
  };
}
