/** `dream-engine scheduler`: dispatch and sweep. Run two; one leads, the other waits to take over. */
import { hostname } from "node:os";

import type { Command } from "commander";

import { loadManifests } from "#platform/bundles.ts";
import { systemClock } from "#platform/clock.ts";
import { createRegistry, startMetricsServer } from "#platform/metrics.ts";
import { openQueues } from "#queue/open-queues.ts";
import { startScheduler } from "#scheduler/scheduler.ts";

import { openBlobs, openDatabase, requireDatabaseUrl, runRole } from "../context.ts";

export function addScheduler(program: Command): void {
  program
    .command("scheduler")
    .description("run one scheduler (needs DATABASE_URL; REDIS_URL and BLOB_URL as the other roles have them)")
    .action(() =>
      runRole("scheduler", async (config, log, parts) => {
        requireDatabaseUrl(config);
        const { db, url } = await openDatabase(config, log, parts);
        const queues = await openQueues({ redis_url: config.REDIS_URL, database_url: url, migrate: true, log });
        parts.push(["queues", queues]);
        const registry = createRegistry("scheduler");
        const scheduler = await startScheduler({
          db,
          queues,
          blobs: await openBlobs(config),
          models: await loadManifests(config.MODELS_DIR),
          liveWorkers: () => null,
          holder: `${hostname()} ${process.pid}`,
          clock: systemClock,
          log,
          registry,
        });
        parts.push(["scheduler", scheduler]);
        const { METRICS_PORT: port, HOST: host } = config;
        parts.push(["metrics", await startMetricsServer({ port, host, registry, log, ready: () => true })]);
      }),
    );
}
