/** `dream-engine scheduler`: dispatch and sweep. Run two; one leads, the other waits to take over. */
import { hostname } from "node:os";

import type { Command } from "commander";

import { createStripe } from "#billing/stripe.ts";
import { loadManifests } from "#platform/bundles.ts";
import { systemClock } from "#platform/clock.ts";
import { createRegistry, startMetricsServer } from "#platform/metrics.ts";
import { datasetIdleMsOf } from "#datasets/idle.ts";
import { retentionMsOf } from "#rollouts/retention.ts";
import { startScheduler } from "#scheduler/scheduler.ts";

import { openBlobs, openShared, runRole } from "../context.ts";

export function addScheduler(program: Command): void {
  program
    .command("scheduler")
    .description("run one scheduler (needs DATABASE_URL; REDIS_URL and BLOB_URL as the other roles have them)")
    .action(() =>
      runRole("scheduler", async (config, log, parts) => {
        const { db, queues } = await openShared("scheduler", config, log, parts);
        const registry = createRegistry("scheduler");
        const scheduler = await startScheduler({
          db,
          queues,
          blobs: await openBlobs(config),
          models: await loadManifests(config.MODELS_DIR),
          liveWorkers: () => null,
          retentionMs: retentionMsOf(config),
          datasetIdleMs: datasetIdleMsOf(config),
          scoredAtOnceMax: config.SCORED_AT_ONCE_MAX,
          holder: `${hostname()} ${process.pid}`,
          clock: systemClock,
          log,
          registry,
          stripe: createStripe(config),
        });
        parts.push(["scheduler", scheduler]);
        const { METRICS_PORT: port, HOST: host } = config;
        const metrics = await startMetricsServer({ port, host, registry, log, ready: () => true });
        parts.push(["metrics", metrics]);
        log.info({ metrics_port: metrics.port }, "metrics are served");
      }),
    );
}
