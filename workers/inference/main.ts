/**
 * Entry of the inference worker process, and its composition root. It is the unit of isolation: after an engine fault
 * it ends, and whoever started it starts another. A parent with an IPC channel is told when it is warm and how many jobs it
 * has, and may tell it to drain; others ask for `GET /state`.
 */
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import type { Manifest } from "#contract/manifest.ts";
import type { WorkerState } from "#contract/pool.ts";
import { openBlobs } from "#blobs/open-blobs.ts";
import { BundleError, loadManifests } from "#platform/bundles.ts";
import { createBusyTime } from "#platform/busy-time.ts";
import { systemClock } from "#platform/clock.ts";
import { type Config, ConfigError, readConfig } from "#platform/config.ts";
import { stopAll } from "#platform/lifecycle.ts";
import { createLog, type Log } from "#platform/log.ts";
import { createRegistry, startMetricsServer } from "#platform/metrics.ts";
import { openQueues } from "#queue/open-queues.ts";

import { checkDevice, DeviceError } from "./engine/device.ts";
import { startEngine } from "./engine/engine.ts";
import { OptimisationMissing } from "./engine/optimisations.ts";
import { checkProviders, isOnDevice, ProviderMissing } from "./engine/providers.ts";
import { createWorkerMetrics } from "./metrics.ts";
import { startScorer } from "./score/scorer.ts";
import { readWorkerSettings } from "./settings.ts";
import { findFfmpeg } from "./video/ffmpeg-path.ts";
import { startInferenceWorker } from "./worker.ts";

/** SIGTERM of our own fleet, when it ends as a whole: it kills after 8 s (scheduler/scaling/fleet/local.ts). */
const FLEET_DRAIN_GRACE_MS = 6_000;
/** The parent is gone: nobody waits for this process, and its successor should find the jobs soon. */
const ORPHAN_GRACE_MS = 10_000;
/** Part of the program, wherever the bundles are. */
const LPIPS_MODEL = fileURLToPath(new URL("../../models/lpips/lpips-alex.json", import.meta.url));
/** Errors whose message is all that a person needs. */
const SENTENCES = [ConfigError, BundleError, ProviderMissing, DeviceError];

async function main(config: Config, log: Log): Promise<number> {
  const { model, runTimeoutMs, optimisations, threads, device, drainMs } = readWorkerSettings(process.env);
  const told = untilToldToStop(drainMs);
  const toDrain = untilToldToDrain();
  if (config.REDIS_URL === undefined && config.DATABASE_URL === undefined) {
    throw new ConfigError("REDIS_URL, DATABASE_URL: expected one of them, got neither: a worker needs a queue");
  }
  const manifests = await loadManifests(config.MODELS_DIR);
  const manifest = manifests.find(({ slug }) => slug === model);
  if (!manifest) {
    const slugs = manifests.map(({ slug }) => slug).join(", ");
    throw new BundleError(`MODEL is ${model}, but the bundles in ${config.MODELS_DIR} are: ${slugs}`);
  }
  const providers = config.ORT_PROVIDERS;
  checkProviders(providers);
  if (isOnDevice(providers)) await prepareDevice(device, manifest, log);
  const registry = createRegistry("inference");
  const busy = createBusyTime(systemClock);
  const now: WorkerState = { state: "starting", model, jobs: 0, idle_since_ms: null };
  const metricsServer = await startMetricsServer({
    port: config.METRICS_PORT,
    host: config.HOST,
    registry,
    log,
    ready: () => now.state === "ready",
    also: async ({ method, path }) =>
      method === "GET" && path === "/state" ? { status: 200, body: { ...now, busy_ms: busy.ms() } } : null,
  });
  const ffmpegPath = await findFfmpeg(config.FFMPEG_PATH);
  const blobs = await openBlobs(config, systemClock);
  const bundleDir = join(config.MODELS_DIR, model);
  // It cannot have a job yet, and leaving while the thread loads a graph would abort the process: see the end of this function.
  let loading = true;
  void told.then(() => (loading ? process.kill(process.pid, "SIGKILL") : undefined));
  const engine = await startEngine({
    bundleDir,
    manifest,
    providers,
    device,
    tuning: threads === undefined ? {} : { threads },
    runTimeoutMs,
    optimisations,
    log,
  });
  loading = false;

  const queues = await openQueues({
    redis_url: config.REDIS_URL,
    database_url: config.DATABASE_URL,
    migrate: false,
    log,
  });
  const metrics = createWorkerMetrics(registry, model, engine);
  const scorer = startScorer({ lpipsModel: LPIPS_MODEL, log });
  const worker = await startInferenceWorker({
    manifest,
    queues,
    blobs,
    engine,
    scorer,
    ffmpegPath,
    clock: systemClock,
    log,
    metrics,
    onJobs(count) {
      now.jobs = count;
      busy.set(count);
      now.idle_since_ms = count === 0 ? systemClock.now() : null;
      tellParent({ type: "jobs", count });
    },
  });
  now.state = "ready";
  if (now.jobs === 0) now.idle_since_ms = systemClock.now();
  log.info({ model, metrics_port: metricsServer.port }, "ready");
  tellParent({ type: "ready" });

  const drained = toDrain.then(async () => {
    now.state = "draining";
    log.info({ jobs: now.jobs }, "draining");
    await worker.drain();
    return 0;
  });
  const end = await Promise.race([told, drained, worker.failed]);
  now.state = "draining";
  const failed = end instanceof Error;
  if (failed) log.fatal({ err: end }, "this worker has to be replaced");
  else log.info({ grace_ms: end }, "stopping");
  await worker.stop(failed ? 0 : end);
  await stopAll(
    [
      ["scorer", scorer],
      ["queues", queues],
      ["metrics server", metricsServer],
    ],
    log,
  );
  // Leaving while the thread is inside a graph would abort the process with a core dump; SIGKILL is the clean way out.
  if (!(await engine.stop())) process.kill(process.pid, "SIGKILL");
  return failed ? 1 : 0;
}

/** Says which device it will be, or why it cannot be, before minutes go into loading a bundle onto it. */
async function prepareDevice(device: number, manifest: Manifest, log: Log): Promise<void> {
  // So that nvidia-smi and CUDA mean the same device by the same number. The engine's thread inherits it.
  const order = (process.env["CUDA_DEVICE_ORDER"] ??= "PCI_BUS_ID");
  if (order !== "PCI_BUS_ID") throw new ConfigError(`CUDA_DEVICE_ORDER: expected PCI_BUS_ID, got ${order}`);
  const { CUDA_VISIBLE_DEVICES: visible } = process.env;
  const found = await checkDevice({ device, visible }, manifest.engine.device_memory_mib);
  if (found) log.info({ device: found.label, free_mib: found.freeMib, total_mib: found.totalMib }, "device");
  else log.warn("this is a slice of a device: nobody can say how much memory it has before the first forward");
}

/** A parent that is gone hears nothing, which `disconnect` says already. */
function tellParent(message: { readonly type: "ready" } | { readonly type: "jobs"; readonly count: number }): void {
  if (process.connected) process.send?.(message, undefined, undefined, () => undefined);
}

/** Our own fleet's way to stop one of several workers: there is no hurry. */
function untilToldToDrain(): Promise<void> {
  return new Promise((resolve) => {
    process.on("message", (message) => {
      if (typeof message === "object" && message !== null && "type" in message && message.type === "drain") resolve();
    });
  });
}

/** Resolves with the grace for the jobs in hand. */
function untilToldToStop(drainMs: number): Promise<number> {
  return new Promise((resolve) => {
    process.once("SIGTERM", () => resolve(process.connected ? FLEET_DRAIN_GRACE_MS : drainMs));
    process.once("disconnect", () => resolve(ORPHAN_GRACE_MS));
    // Ctrl-C in a terminal reaches the whole process group; with a parent, it is the parent who says when to stop.
    for (const signal of ["SIGINT", "SIGHUP"] as const) {
      process.on(signal, () => {
        if (!process.connected) resolve(drainMs);
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
    else if (SENTENCES.some((type) => error instanceof type))
      log.fatal(`the worker cannot run: ${(error as Error).message}`);
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
