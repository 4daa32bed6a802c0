/** `dream-engine notifier`: the role that sends webhooks. */
import { randomBytes } from "node:crypto";

import type { Command } from "commander";

import { loadManifests } from "#platform/bundles.ts";
import { systemClock } from "#platform/clock.ts";
import { createRegistry, startMetricsServer } from "#platform/metrics.ts";
import { createOutbound } from "#platform/outbound.ts";
import { retentionMsOf } from "#rollouts/retention.ts";
import { startNotifier } from "#workers/notifier/notifier.ts";

import { openBlobs, openShared, runRole } from "../context.ts";

export function addNotifier(program: Command): void {
  program
    .command("notifier")
    .description(
      "send webhooks (needs DATABASE_URL and BLOB_URL; REDIS_URL and PUBLIC_URL as the other roles have them)",
    )
    .action(() =>
      runRole("notifier", async (config, log, parts) => {
        const models = await loadManifests(config.MODELS_DIR);
        const { db, queues } = await openShared("notifier", config, log, parts);
        const registry = createRegistry("notifier");
        if (config.PUBLIC_URL === undefined) {
          log.warn("PUBLIC_URL is not set: webhooks bring links to videos only where the blob store signs them");
        }
        const notifier = await startNotifier({
          db,
          signals: queues.signals,
          blobs: await openBlobs(config),
          models,
          publicUrl: config.PUBLIC_URL ?? null,
          retentionMs: retentionMsOf(config),
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
