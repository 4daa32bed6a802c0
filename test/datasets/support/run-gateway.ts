/** A gateway on what a run fixture has, under its own role; links begin with https://dreams.example. */
import { randomBytes } from "node:crypto";

import { Registry } from "prom-client";

import { createGateway, type Gateway } from "#gateway/app.ts";
import { DEFAULT_BOUNDS } from "#gateway/gateway-parts.ts";
import { createLocalRateLimiter } from "#gateway/rate-limiter-local.ts";
import { systemClock } from "#platform/clock.ts";
import { GATEWAY_CONFIG } from "#test/gateway/support/gateway-config.ts";
import { silentLog } from "#test/support/postgres.ts";

import type { RunFixture } from "../run-fixture.ts";

export function openRunGateway(fixture: RunFixture): Promise<Gateway> {
  return createGateway({
    config: { ...GATEWAY_CONFIG, PUBLIC_URL: "https://dreams.example" },
    db: fixture.database.as("gateway"),
    queues: fixture.queues,
    blobs: fixture.blobs,
    bundles: [fixture.model],
    pools: { poolStates: async () => ({}) },
    rateLimiter: createLocalRateLimiter(systemClock),
    clock: systemClock,
    random: randomBytes,
    log: silentLog,
    registry: new Registry(),
    bounds: DEFAULT_BOUNDS,
  });
}
