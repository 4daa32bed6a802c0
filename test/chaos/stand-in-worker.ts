/**
 * A worker process for crash tests and benchmarks: `node test/chaos/stand-in-worker.ts <model> <kind>`.
 *
 *   none    takes jobs off the queue and reports them done at once, with a few bytes for a video (instant-worker.ts)
 *   black   the inference worker itself, with its ffmpeg, on an engine whose frames are all black and cost nothing
 *   model   the inference worker on the model's own engine
 *
 * The last two meet poison: a rollout whose seed is POISON_SEED or higher kills this process with SIGKILL as soon as the
 * engine gets it, as a native crash would.
 */
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { blobUrlOf } from "#blobs/blob-url.ts";
import { createFsBlobs } from "#blobs/fs.ts";
import type { Manifest } from "#contract/manifest.ts";
import { loadManifests } from "#platform/bundles.ts";
import { systemClock } from "#platform/clock.ts";
import { readConfig } from "#platform/config.ts";
import { stopAll, untilToldToStop } from "#platform/lifecycle.ts";
import { createLog } from "#platform/log.ts";
import { createRegistry } from "#platform/metrics.ts";
import { openQueues } from "#queue/open-queues.ts";
import { createCounters } from "#workers/inference/engine/counters.ts";
import { type Engine, startEngine } from "#workers/inference/engine/engine.ts";
import { specsOf } from "#workers/inference/engine/optimisations.ts";
import { createWorkerMetrics } from "#workers/inference/metrics.ts";
import { findFfmpeg } from "#workers/inference/video/ffmpeg-path.ts";
import { startScorer } from "#workers/inference/score/scorer.ts";
import { startInferenceWorker } from "#workers/inference/worker.ts";

import { startInstantWorker } from "./instant-worker.ts";

export type StandInKind = "none" | "black" | "model";

/** Far from what a test counts its rows with. */
export const POISON_SEED = 1_000_000_000;

const RUN_TIMEOUT_MS = 60_000;
const INSTANT_CONCURRENCY = 8;

async function main(model: string, kind: StandInKind): Promise<void> {
  const config = readConfig(process.env);
  const log = createLog("inference", config.LOG_LEVEL);
  const told = untilToldToStop();
  const manifest = (await loadManifests(config.MODELS_DIR)).find(({ slug }) => slug === model);
  if (!manifest) throw new Error(`no bundle ${model} in ${config.MODELS_DIR}`);
  const { REDIS_URL: redis_url, DATABASE_URL: database_url } = config;
  const queues = await openQueues({ redis_url, database_url, migrate: false, log });
  const blobs = createFsBlobs(fileURLToPath(blobUrlOf(config)));

  if (kind === "none") {
    const options = { queues, blobs, model, outcomeOf: () => null, concurrency: INSTANT_CONCURRENCY };
    const worker = await startInstantWorker(options);
    log.info({ kind }, "running");
    await told;
    await stopAll(
      [
        ["queues", queues],
        ["worker", worker],
      ],
      log,
    );
    return;
  }
  const engine = poisonable(
    kind === "black"
      ? blackEngine(manifest)
      : await startEngine({
          bundleDir: join(config.MODELS_DIR, model),
          manifest,
          providers: config.ORT_PROVIDERS,
          runTimeoutMs: RUN_TIMEOUT_MS,
          log,
        }),
  );
  const worker = await startInferenceWorker({
    manifest,
    queues,
    blobs,
    engine,
    scorer: startScorer({ lpipsModel: "models/lpips/lpips-alex.json", log }),
    ffmpegPath: await findFfmpeg(config.FFMPEG_PATH),
    clock: systemClock,
    log,
    metrics: createWorkerMetrics(createRegistry("inference"), model, engine),
  });
  log.info({ kind }, "running");
  await Promise.race([told, worker.failed]);
  await stopAll(
    [
      ["queues", queues],
      ["worker", worker],
    ],
    log,
  );
  if (!(await engine.stop())) process.kill(process.pid, "SIGKILL");
}

function poisonable(engine: Engine): Engine {
  return {
    get stats() {
      return engine.stats;
    },
    samplesMax: engine.samplesMax,
    specs: engine.specs,
    failed: engine.failed,
    stop: () => engine.stop(),
    submit(request, onFrames) {
      if (request.seed >= POISON_SEED) process.kill(process.pid, "SIGKILL");
      return engine.submit(request, onFrames);
    },
  };
}

function blackEngine(manifest: Manifest): Engine {
  const { width, height, action_dim } = manifest.shapes;
  const frameBytes = width * height * 3;
  async function dream(actions: readonly Float32Array[], onFrames: Parameters<Engine["submit"]>[1]): Promise<void> {
    for (const [candidate, values] of actions.entries()) {
      await onFrames(candidate, new Uint8Array((values.length / action_dim) * frameBytes));
    }
  }

  return {
    stats: createCounters(),
    samplesMax: manifest.engine.max_batch_samples,
    specs: specsOf(manifest, undefined),
    failed: new Promise(() => undefined),
    stop: () => Promise.resolve(true),
    submit({ actions }, onFrames) {
      const done = dream(actions, onFrames).then(() => ({ kind: "finished" as const, engineWallMs: 1 }));
      return { done, cancel: () => undefined };
    },
  };
}

function isKind(text: string): text is StandInKind {
  return ["none", "black", "model"].includes(text);
}

if (import.meta.main) {
  const [model = "", kind = ""] = process.argv.slice(2);
  if (!isKind(kind)) throw new Error(`expected the kind none, black or model, got ${JSON.stringify(kind)}`);
  await main(model, kind);
  process.exit(0);
}
