/** `dream-engine runner`: the role that runs datasets. */
import { randomBytes } from "node:crypto";

import type { Command } from "commander";

import { loadManifests } from "#platform/bundles.ts";
import { systemClock } from "#platform/clock.ts";
import { createRegistry, startMetricsServer } from "#platform/metrics.ts";
import { createOutbound } from "#platform/outbound.ts";
import { backlogLimitsOf } from "#rollouts/backlog-limits.ts";
import { startRunner } from "#workers/runner/runner.ts";

import { openBlobs, openShared, runRole } from "../context.ts";

export function addRunner(program: Command): void {
  program
    .command("runner")
    .description("run datasets (needs DATABASE_URL and BLOB_URL; REDIS_URL as the other roles have it)")
    .action(() =>
      runRole("runner", async (config, log, parts) => {
        const models = await loadManifests(config.MODELS_DIR);
        const { db, queues } = await openShared("runner", config, log, parts);
        const registry = createRegistry("runner");
        const runner = await startRunner({
          db,
          queues,
          blobs: await openBlobs(config),
          models,
          backlog: backlogLimitsOf(config),
          outbound: createOutbound({ allowPrivate: config.OUTBOUND_PRIVATE === "on" }),
          clock: systemClock,
          random: randomBytes,
          log,
          registry,
        });
        parts.push(["runner", runner]);
        const { METRICS_PORT: port, HOST: host } = config;
        const metrics = await startMetricsServer({ port, host, registry, log, ready: () => true });
        parts.push(["metrics", metrics]);
        log.info({ metrics_port: metrics.port }, "metrics are served");
      }),
    );
}
