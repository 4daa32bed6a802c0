/** `dream-engine scheduler`: dispatch, sweep and the size of the worker pools. Run two; one leads, the other waits to take over. */
import { randomBytes } from "node:crypto";
import { hostname } from "node:os";

import type { Command } from "commander";

import { createStripe } from "#billing/stripe.ts";
import { datasetIdleMsOf } from "#datasets/idle.ts";
import { loadManifests } from "#platform/bundles.ts";
import { systemClock } from "#platform/clock.ts";
import type { Config } from "#platform/config.ts";
import type { Log } from "#platform/log.ts";
import { createRegistry, startMetricsServer } from "#platform/metrics.ts";
import { retentionMsOf } from "#rollouts/retention.ts";
import { createKubernetesApi, inClusterAccess } from "#scheduler/scaling/fleet/kubernetes-api.ts";
import { createScalingEndpoint } from "#scheduler/scaling/fleet/kubernetes-endpoint.ts";
import { createKubernetesFleet } from "#scheduler/scaling/fleet/kubernetes.ts";
import type { ScalingSetup } from "#scheduler/scaling/scaler.ts";
import { startScheduler } from "#scheduler/scheduler.ts";

import { openBlobs, openShared, type Parts, runRole, type Shared } from "../context.ts";
import { workerDatabaseUrl } from "../database-roles.ts";
import { limitsOf, requireWorkers, startOwnWorkers } from "../fleet.ts";
import { UserError } from "../user-error.ts";

export function addScheduler(program: Command): void {
  program
    .command("scheduler")
    .description("run one scheduler (needs DATABASE_URL; REDIS_URL and BLOB_URL as the other roles have them)")
    .action(() =>
      runRole("scheduler", async (config, log, parts) => {
        const limits = limitsOf(config);
        const shared = await openShared("scheduler", config, log, parts);
        const { db, queues } = shared;
        const registry = createRegistry("scheduler");
        const models = await loadManifests(config.MODELS_DIR);
        const slugs = models.map(({ slug }) => slug);
        const scheduler = await startScheduler({
          db,
          queues,
          blobs: await openBlobs(config),
          models,
          scaling: { fleet: await openFleet(config, slugs, shared, log, parts), limits },
          retentionMs: retentionMsOf(config),
          datasetIdleMs: datasetIdleMsOf(config),
          scoredAtOnceMax: config.SCORED_AT_ONCE_MAX,
          gpuUsdPerHour: config.GPU_USD_PER_HOUR,
          holder: `${hostname()} ${process.pid}`,
          clock: systemClock,
          log,
          registry,
          stripe: createStripe(config),
        });
        parts.push(["scheduler", scheduler]);
        const metrics = await startMetricsServer({
          port: config.METRICS_PORT,
          host: config.HOST,
          registry,
          log,
          ready: () => true,
          ...(config.FLEET === "kubernetes" && {
            also: createScalingEndpoint({ db, models: slugs, token: config.SCALING_TOKEN, log }),
          }),
        });
        parts.push(["metrics", metrics]);
        log.info({ metrics_port: metrics.port }, "metrics are served");
      }),
    );
}

/** Started before anybody leads, so that it outlives a change of leaders; a standby's has nobody to run. */
async function openFleet(
  config: Config,
  models: readonly string[],
  shared: Shared,
  log: Log,
  parts: Parts,
): Promise<ScalingSetup["fleet"]> {
  const { FLEET: kind = "none" } = config;
  if (kind === "none") return null;
  requireWorkers(kind, config);
  if (kind === "kubernetes") {
    const access = await inClusterAccess(process.env);
    const api = createKubernetesApi(access);
    parts.push(["Kubernetes", api]);
    const { namespace } = access;
    const driver = createKubernetesFleet({ api, namespace, models, db: shared.db, clock: systemClock, log });
    parts.push(["fleet", driver]);
    return { kind, driver };
  }
  const queueUrl = await queueUrlOf(shared);
  const driver = await startOwnWorkers({ config, models, initial: 0, queueUrl, clock: systemClock, log });
  parts.push(["inference workers", driver]);
  return { kind, driver };
}

/** Null: the queue is on Redis, and workers need no database. */
async function queueUrlOf({ db, url, owned, queues }: Shared): Promise<string | null> {
  if (queues.backend === "redis") return null;
  if (owned) return workerDatabaseUrl({ db, url, random: randomBytes });
  throw new UserError(
    "FLEET=local with the queue in PostgreSQL makes a database role for its workers: DATABASE_URL has to name the schema's owner.\n" +
      "Or set REDIS_URL, so that workers need no database, or run workers yourself: FLEET=none and `dream-engine worker`.",
  );
}
