/** `dream-engine notifier`: the role that sends webhooks. */
import { randomBytes } from "node:crypto";

import type { Command } from "commander";

import { loadManifests } from "#platform/bundles.ts";
import { systemClock } from "#platform/clock.ts";
import { createRegistry, startMetricsServer } from "#platform/metrics.ts";
import { createOutbound } from "#platform/outbound.ts";
import { openSignals } from "#queue/open-queues.ts";
import { datasetIdleMsOf } from "#datasets/idle.ts";
import { retentionMsOf } from "#rollouts/retention.ts";
import { startNotifier } from "#workers/notifier/notifier.ts";

import { openBlobs, openSharedDatabase, runRole } from "../context.ts";

export function addNotifier(program: Command): void {
  program
    .command("notifier")
    .description(
      "send webhooks (needs DATABASE_URL and BLOB_URL; REDIS_URL and PUBLIC_URL as the other roles have them)",
    )
    .action(() =>
      runRole("notifier", async (config, log, parts) => {
        const models = await loadManifests(config.MODELS_DIR);
        const { db, url } = await openSharedDatabase("notifier", config, log, parts);
        const signals = await openSignals({ redis_url: config.REDIS_URL, database_url: url, log });
        parts.push(["signals", signals]);
        const registry = createRegistry("notifier");
        if (config.PUBLIC_URL === undefined) {
          log.warn("PUBLIC_URL is not set: webhooks bring links to videos only where the blob store signs them");
        }
        const notifier = await startNotifier({
          db,
          signals,
          blobs: await openBlobs(config),
          models,
          publicUrl: config.PUBLIC_URL ?? null,
          retentionMs: retentionMsOf(config),
          datasetIdleMs: datasetIdleMsOf(config),
          outbound: createOutbound({ allowPrivate: config.OUTBOUND_PRIVATE === "on" }),
          clock: systemClock,
          random: randomBytes,
          log,
          registry,
        });
        parts.push(["notifier", notifier]);
        const { METRICS_PORT: port, HOST: host } = config;
        const metrics = await startMetricsServer({ port, host, registry, log, ready: () => true });
        parts.push(["metrics", metrics]);
        log.info({ metrics_port: metrics.port }, "metrics are served");
      }),
    );
}
