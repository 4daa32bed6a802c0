/** `dream-engine gateway`: the HTTP role alone. */
import { randomBytes } from "node:crypto";

import type { Command } from "commander";

import { loadManifests } from "#platform/bundles.ts";
import { systemClock } from "#platform/clock.ts";
import { createRegistry } from "#platform/metrics.ts";

import { openBlobs, openShared, runRole } from "../context.ts";
import { poolStatesFromTraffic } from "../pool-states.ts";

export function addGateway(program: Command): void {
  program
    .command("gateway")
    .description("run one gateway (needs DATABASE_URL; REDIS_URL and BLOB_URL as the other roles have them)")
    .action(() =>
      runRole("gateway", async (config, log, parts) => {
        const { startGateway } = await import("#gateway/server.ts"); // see serve.ts
        const { db, queues } = await openShared(config, log, parts);
        const bundles = await loadManifests(config.MODELS_DIR);
        const gateway = await startGateway({
          config,
          host: config.HOST,
          port: config.PORT,
          db,
          queues,
          blobs: await openBlobs(config),
          bundles,
          pools: poolStatesFromTraffic(db, queues, bundles),
          clock: systemClock,
          random: randomBytes,
          log,
          registry: createRegistry("gateway"),
        });
        parts.push(["gateway", gateway]);
      }),
    );
}
