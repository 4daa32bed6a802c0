/** `dream-engine gateway`: the HTTP role alone. */
import { randomBytes } from "node:crypto";

import type { Command } from "commander";

import { loadManifests } from "#platform/bundles.ts";
import { systemClock } from "#platform/clock.ts";
import { createRegistry } from "#platform/metrics.ts";

import { openBlobs, openShared, runRole } from "../context.ts";
import { createPoolStates } from "../pool-states.ts";

export function addGateway(program: Command): void {
  program
    .command("gateway")
    .description("run one gateway (needs DATABASE_URL; REDIS_URL and BLOB_URL as the other roles have them)")
    .action(() =>
      runRole("gateway", async (config, log, parts) => {
        const { startGateway } = await import("#gateway/server.ts"); // see serve.ts
        const { openRateLimiter } = await import("#gateway/rate-limiter-open.ts");
        const { db, queues } = await openShared("gateway", config, log, parts);
        const bundles = await loadManifests(config.MODELS_DIR);
        const registry = createRegistry("gateway");
        const rateLimiter = await openRateLimiter({
          redis_url: config.REDIS_URL,
          sharedDb: db,
          clock: systemClock,
          log,
          registry,
        });
        parts.push(["rate limiter", rateLimiter]);
        const gateway = await startGateway({
          config,
          host: config.HOST,
          port: config.PORT,
          db,
          queues,
          blobs: await openBlobs(config),
          bundles,
          pools: createPoolStates(
            db,
            bundles.map(({ slug }) => slug),
            systemClock,
          ),
          rateLimiter,
          clock: systemClock,
          random: randomBytes,
          log,
          registry,
        });
        parts.push(["gateway", gateway]);
      }),
    );
}
