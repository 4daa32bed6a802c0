/**
 * Everything in one process group: gateway, scheduler, settlement, runner and notifier in this process, inference workers as its
 * children. The same parts run one by one as separate deployments (commands/gateway.ts and its siblings).
 */
import { randomBytes } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";

import { createStripe } from "#billing/stripe.ts";
import type { Manifest } from "#contract/manifest.ts";
import { openRateLimiter } from "#gateway/rate-limiter-open.ts";
import { startGateway } from "#gateway/server.ts";
import { moneyMetricsOf } from "#ledger/metrics.ts";
import { loadManifests } from "#platform/bundles.ts";
import { systemClock } from "#platform/clock.ts";
import type { Config } from "#platform/config.ts";
import type { Database } from "#platform/database.ts";
import { errorCode } from "#platform/error-code.ts";
import { type Service, stopAll } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";
import { createRegistry } from "#platform/metrics.ts";
import { createOutbound } from "#platform/outbound.ts";
import { openQueues } from "#queue/open-queues.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { datasetIdleMsOf } from "#datasets/idle.ts";
import { backlogLimitsOf } from "#rollouts/backlog-limits.ts";
import { retentionMsOf } from "#rollouts/retention.ts";
import type { LocalFleet } from "#scheduler/scaling/fleet/local.ts";
import { startScheduler } from "#scheduler/scheduler.ts";
import { startNotifier } from "#workers/notifier/notifier.ts";
import { startRunner } from "#workers/runner/runner.ts";
import { startSettlementWorker } from "#workers/settlement/worker.ts";

import { openBlobs, openDatabase, type Parts } from "./context.ts";
import { openAs, workerDatabaseUrl } from "./database-roles.ts";
import { limitsOf, startOwnWorkers } from "./fleet.ts";
import { createPoolStates } from "./pool-states.ts";
import { alreadyServing, cannotListen, preflight } from "./preflight.ts";
import { noteRunningServer } from "./running-server.ts";
import type { Steps } from "./steps.ts";
import { UserError } from "./user-error.ts";

const WARM_POLL_MS = 50;

export interface System extends Service {
  readonly url: string;
  readonly manifests: readonly Manifest[];
  readonly db: Database;
  readonly queues: QueueSystem;
  /** Null: somebody else runs the workers. */
  readonly fleet: LocalFleet | null;
  /** Resolves when this process cannot go on and has to be started anew. */
  readonly failed: Promise<Error>;
}

/** Starts everything and resolves when the gateway answers; workers may still be warming (see `untilWarm`). */
export async function startSystem(config: Config, log: Log, steps: Steps): Promise<System> {
  const parts: Parts = [];
  try {
    return await assemble(config, log, steps, parts);
  } catch (error) {
    await stopAll(parts, log);
    throw error;
  }
}

async function assemble(config: Config, log: Log, steps: Steps, parts: Parts): Promise<System> {
  const clock = systemClock;
  const limits = limitsOf(config);
  const { FLEET: fleetKind = config.WORKERS === 0 ? "none" : "local" } = config;
  if (fleetKind === "kubernetes") {
    throw new UserError(
      "FLEET: `serve` expected local or none, got kubernetes. In a cluster each role runs by itself.",
    );
  }
  const manifests = await loadManifests(config.MODELS_DIR);
  await preflight(config, manifests);
  const {
    db,
    url: ownerUrl,
    embedded,
    owned,
  } = await openDatabase(config, log, parts, {
    onStep: (step) => steps.begin(step),
    upgrade: true,
  });
  if (!owned) {
    throw new UserError(
      "`serve` makes database roles for its parts and workers: DATABASE_URL has to name the schema's owner.\n" +
        "With another role run `gateway`, `scheduler` and `settlement` each under its own.",
    );
  }
  if (embedded && !(await embedded.claimServe())) throw await alreadyServing(config.DATA_DIR);
  steps.done(embedded ? "database" : "database (DATABASE_URL)");

  const queues = await openQueues({ redis_url: config.REDIS_URL, database_url: ownerUrl, migrate: true, log });
  parts.push(["queues", queues]);
  const blobs = await openBlobs(config);
  const registry = createRegistry("serve");
  const models = manifests.map(({ slug }) => slug);

  const owner = { db, url: ownerUrl, random: randomBytes };
  const settlementLog = log.child({ part: "settlement" });
  const settlement = {
    db: await openAs("settlement", owner, settlementLog, parts),
    queues,
    money: moneyMetricsOf(registry),
    log: settlementLog,
  };
  parts.push(["settlement", await startSettlementWorker(settlement)]);
  let fleet: LocalFleet | null = null;
  if (fleetKind === "local") {
    const queueUrl = queues.backend === "postgres" ? await workerDatabaseUrl(owner) : null;
    // Whoever starts the system is about to use it.
    const initial = Math.max(1, config.WORKERS_MIN);
    fleet = await startOwnWorkers({ config, models, initial, queueUrl, clock, log });
    parts.push(["inference workers", fleet]);
  }
  const schedulerLog = log.child({ part: "scheduler" });
  const scheduler = await startScheduler({
    db: await openAs("scheduler", owner, schedulerLog, parts),
    queues,
    blobs,
    models: manifests,
    scaling: fleet
      ? { fleet: { kind: "local", driver: fleet }, limits, atLeast: firstWorkers(fleet, limits) }
      : { fleet, limits },
    retentionMs: retentionMsOf(config),
    datasetIdleMs: datasetIdleMsOf(config),
    scoredAtOnceMax: config.SCORED_AT_ONCE_MAX,
    gpuUsdPerHour: config.GPU_USD_PER_HOUR,
    holder: `serve ${process.pid}`,
    clock,
    log: schedulerLog,
    registry,
    stripe: createStripe(config),
  });
  parts.push(["scheduler", scheduler]);

  const outbound = createOutbound({ allowPrivate: config.OUTBOUND_PRIVATE === "on" });
  const runnerLog = log.child({ part: "runner" });
  const runner = await startRunner({
    db: await openAs("runner", owner, runnerLog, parts),
    queues,
    blobs,
    models: manifests,
    outbound,
    backlog: backlogLimitsOf(config),
    clock,
    random: randomBytes,
    log: runnerLog,
    registry,
  });
  parts.push(["runner", runner]);

  const gatewayLog = log.child({ part: "gateway" });
  const gatewayDb = await openAs("gateway", owner, gatewayLog, parts);
  const rateLimiter = await openRateLimiter({
    redis_url: config.REDIS_URL,
    // Nobody else has a gateway on a database of this folder's own.
    sharedDb: embedded ? null : gatewayDb,
    clock,
    log: gatewayLog,
    registry,
  });
  parts.push(["rate limiter", rateLimiter]);
  const gateway = await startGateway({
    config,
    host: config.HOST,
    port: config.PORT,
    db: gatewayDb,
    queues,
    blobs,
    bundles: manifests,
    pools: createPoolStates(gatewayDb, models, clock),
    rateLimiter,
    clock,
    random: randomBytes,
    log: gatewayLog,
    registry,
  }).catch(async (error: unknown) => {
    // Somebody took the port since we looked.
    throw errorCode(error) === "EADDRINUSE" ? await cannotListen(config, "EADDRINUSE") : error;
  });
  parts.push(["gateway", gateway]);
  steps.done(`gateway on ${gateway.url}`);

  const notifierLog = log.child({ part: "notifier" });
  const notifier = await startNotifier({
    db: await openAs("notifier", owner, notifierLog, parts),
    signals: queues.signals,
    blobs,
    models: manifests,
    publicUrl: config.PUBLIC_URL ?? gateway.url,
    retentionMs: retentionMsOf(config),
    datasetIdleMs: datasetIdleMsOf(config),
    outbound,
    clock,
    random: randomBytes,
    log: notifierLog,
    registry,
  });
  parts.push(["notifier", notifier]);

  const removeNote = await noteRunningServer(config.DATA_DIR, gateway.url);
  parts.push(["note", { stop: removeNote }]);
  const failed = embedded?.moved ?? new Promise<never>(() => undefined); // a server elsewhere keeps its address
  return { url: gateway.url, manifests, db, queues, fleet, failed, stop: () => stopAll(parts.splice(0), log) };
}

/** Whoever starts the system is about to use it: of each model one worker stays until a window after it was ready. */
const firstWorkers =
  (fleet: LocalFleet, { scaledown_s }: ReturnType<typeof limitsOf>) =>
  (model: string): number => {
    const readyMs = fleet.firstReadyMs(model);
    return readyMs === null || systemClock.now() - readyMs < scaledown_s * 1000 ? 1 : 0;
  };

/** Waits until every model has had a worker; false when one keeps dying, `signal` ends the wait, or workers are somebody else's. */
export async function untilWarm({ manifests, fleet }: System, signal: AbortSignal): Promise<boolean> {
  if (fleet === null) return false;
  // One that has been warm may be gone before the last of the others is, because nobody uses it.
  const cold = new Set(manifests.map(({ slug }) => slug));
  while (!signal.aborted) {
    for (const slug of cold) if (fleet.state(slug) === "warm") cold.delete(slug);
    if (cold.size === 0) return true;
    if (manifests.some(({ slug }) => fleet.crashLoop(slug) !== null)) return false;
    await delay(WARM_POLL_MS);
  }
  return false;
}
