/** A gateway on what a run fixture has, under its own role; links begin with https://dreams.example. */
import { randomBytes } from "node:crypto";

import { Registry } from "prom-client";

import { createGateway, type Gateway } from "#gateway/app.ts";
import { DEFAULT_BOUNDS } from "#gateway/gateway-parts.ts";
import { createLocalRateLimiter } from "#gateway/rate-limiter-local.ts";
import { systemClock } from "#platform/clock.ts";
import { silentLog } from "#test/support/postgres.ts";

import type { RunFixture } from "../run-fixture.ts";

export function openRunGateway(fixture: RunFixture): Promise<Gateway> {
  return createGateway({
    config: {
      AUTH: "on",
      PUBLIC_URL: "https://dreams.example",
      DEFAULT_MODEL: undefined,
      OPERATOR_TOKEN: undefined,
      SIGNUP: "off",
      TRUSTED_PROXIES: undefined,
      STRIPE_SECRET_KEY: undefined,
      STRIPE_WEBHOOK_SECRET: undefined,
      STRIPE_API_BASE: undefined,
      OUTBOUND_PRIVATE: "off",
      RETENTION_DAYS: 30,
      DATASETS_UNFINISHED_MAX: 100,
      DATASET_ROWS_UNFINISHED_MAX: 1_000_000,
      DATASET_IDLE_DAYS: 30,
      UPLOADS_MAX: 10_000,
      UPLOADS_GB_MAX: 20,
    },
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
