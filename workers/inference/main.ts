/**
 * Entry of the inference worker process, and its composition root. It is the unit of isolation: after an engine fault
 * it ends, and whoever started it starts another. A parent with an IPC channel is told when it is warm.
 */
import { join } from "node:path";

import { openBlobs } from "#blobs/open-blobs.ts";
import { BundleError, loadManifests } from "#platform/bundles.ts";
import { systemClock } from "#platform/clock.ts";
import { type Config, ConfigError, readConfig } from "#platform/config.ts";
import { stopAll } from "#platform/lifecycle.ts";
import { createLog, type Log } from "#platform/log.ts";
import { createRegistry, startMetricsServer } from "#platform/metrics.ts";
import { openQueues } from "#queue/open-queues.ts";

import { startEngine } from "./engine/engine.ts";
import { OptimisationMissing } from "./engine/optimisations.ts";
import { createWorkerMetrics } from "./metrics.ts";
import { readWorkerSettings } from "./settings.ts";
import { findFfmpeg } from "./video/ffmpeg-path.ts";
import { startInferenceWorker } from "./worker.ts";

/** Told to stop: jobs in hand may finish. Most supervisors kill after 30 s; before that the rest has to be put back. */
const DRAIN_GRACE_MS = 25_000;
/** The same under our own fleet, which kills after 8 s (scheduler/scaling/fleet/local.ts). */
const FLEET_DRAIN_GRACE_MS = 6_000;
/** The parent is gone: nobody waits for this process, and its successor should find the jobs soon. */
const ORPHAN_GRACE_MS = 10_000;

async function main(config: Config, log: Log): Promise<number> {
  const told = untilToldToStop();
  const { model, runTimeoutMs, optimisations } = readWorkerSettings(process.env);
  if (config.REDIS_URL === undefined && config.DATABASE_URL === undefined) {
    throw new ConfigError("REDIS_URL, DATABASE_URL: expected one of them, got neither: a worker needs a queue");
  }
  const manifests = await loadManifests(config.MODELS_DIR);
  const manifest = manifests.find(({ slug }) => slug === model);
  if (!manifest) {
    const slugs = manifests.map(({ slug }) => slug).join(", ");
    throw new BundleError(`MODEL is ${model}, but the bundles in ${config.MODELS_DIR} are: ${slugs}`);
  }
  const registry = createRegistry("inference");
  const state = { ready: false };
  const metricsServer = await startMetricsServer({
    port: config.METRICS_PORT,
    host: config.HOST,
    registry,
    log,
    ready: () => state.ready,
  });
  const ffmpegPath = await findFfmpeg(config.FFMPEG_PATH);
  const blobs = await openBlobs(config, systemClock);
  const bundleDir = join(config.MODELS_DIR, model);
  const providers = config.ORT_PROVIDERS;
  const engine = await startEngine({ bundleDir, manifest, providers, runTimeoutMs, optimisations, log });

  const queues = await openQueues({
    redis_url: config.REDIS_URL,
    database_url: config.DATABASE_URL,
    migrate: false,
    log,
  });
  const metrics = createWorkerMetrics(registry, model, engine);
  const worker = await startInferenceWorker({
    manifest,
    queues,
    blobs,
    engine,
    ffmpegPath,
    clock: systemClock,
    log,
    metrics,
  });
  state.ready = true;
  log.info({ model, metrics_port: metricsServer.port }, "ready");
  process.send?.({ type: "ready" });

  const end = await Promise.race([told, worker.failed]);
  state.ready = false;
  const failed = end instanceof Error;
  if (failed) log.fatal({ err: end }, "this worker has to be replaced");
  else log.info({ grace_ms: end }, "stopping");
  await worker.stop(failed ? 0 : end);
  await stopAll(
    [
      ["queues", queues],
      ["metrics server", metricsServer],
    ],
    log,
  );
  // Leaving while the thread is inside a graph would abort the process with a core dump; SIGKILL is the clean way out.
  if (!(await engine.stop())) process.kill(process.pid, "SIGKILL");
  return failed ? 1 : 0;
}

/** Resolves with the grace for the jobs in hand. */
function untilToldToStop(): Promise<number> {
  return new Promise((resolve) => {
    process.once("SIGTERM", () => resolve(process.connected ? FLEET_DRAIN_GRACE_MS : DRAIN_GRACE_MS));
    process.once("disconnect", () => resolve(ORPHAN_GRACE_MS));
    // Ctrl-C in a terminal reaches the whole process group; with a parent, it is the parent who says when to stop.
    for (const signal of ["SIGINT", "SIGHUP"] as const) {
      process.on(signal, () => {
        if (!process.connected) resolve(DRAIN_GRACE_MS);
      });
    }
  });
}

function start(): void {
  let log = createLog("inference", "info");
  const fail = (error: unknown): never => {
    // What a person can put right is said in a sentence, without a stack.
    if (error instanceof OptimisationMissing)
      log.fatal(`the worker cannot run: ENGINE_OPTIMISATIONS: ${error.message}`);
    else if (error instanceof ConfigError || error instanceof BundleError)
      log.fatal(`the worker cannot run: ${error.message}`);
    else log.fatal({ err: error }, "the worker cannot run");
    return process.exit(1);
  };
  try {
    const config = readConfig(process.env);
    log = createLog("inference", config.LOG_LEVEL);
    main(config, log).then((code) => process.exit(code), fail);
  } catch (error) {
    fail(error);
  }
}

start();
