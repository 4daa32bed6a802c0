/** Inference workers in the test's own process, each with a real engine of its own. */
import { Registry } from "prom-client";

import type { BlobStore } from "#blobs/blob-store.ts";
import type { Manifest } from "#contract/manifest.ts";
import { systemClock } from "#platform/clock.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { silentLog } from "#test/support/postgres.ts";
import { type Engine, startEngine } from "#workers/inference/engine/engine.ts";
import { createWorkerMetrics } from "#workers/inference/metrics.ts";
import { findFfmpeg } from "#workers/inference/video/ffmpeg-path.ts";
import { type InferenceWorker, startInferenceWorker } from "#workers/inference/worker.ts";

interface WorkerHere {
  readonly engine: Engine;
  readonly worker: InferenceWorker;
  readonly registry: Registry;
}

export interface WorkersHere {
  start(changes?: { readonly ffmpegPath?: string; readonly blobs?: BlobStore }): Promise<WorkerHere>;
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
    async start(changes = {}) {
      const engine = await startEngine({ bundleDir, manifest, providers: ["cpu"], runTimeoutMs: 20_000, log });
      const registry = new Registry();
      const metrics = createWorkerMetrics(registry, manifest.slug, engine);
      const ffmpegPath = await findFfmpeg(undefined);
      const worker = await startInferenceWorker({
        ...parts,
        engine,
        ffmpegPath,
        clock: systemClock,
        log,
        metrics,
        ...changes,
      });
      running.push({ engine, worker, registry });
      return { engine, worker, registry };
    },
    async stop() {
      for (const { engine, worker } of running.splice(0)) {
        await worker.stop();
        await engine.stop();
      }
    },
  };
}
