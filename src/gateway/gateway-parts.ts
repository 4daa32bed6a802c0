/** What the gateway is made of: everything comes in as a parameter, nothing is looked up. */
import type { Registry } from "prom-client";

import type { BlobStore } from "#blobs/blob-store.ts";
import type { RandomBytes } from "#contract/ids.ts";
import { SYNC_DEADLINE_MS } from "#contract/limits.ts";
import type { Manifest } from "#contract/manifest.ts";
import type { PoolState } from "#contract/pool.ts";
import type { Clock } from "#platform/clock.ts";
import type { Config } from "#platform/config.ts";
import type { Database } from "#platform/database.ts";
import type { Log } from "#platform/log.ts";
import type { QueueSystem } from "#queue/job-queue.ts";

import { ARRIVAL_BOUNDS, type ArrivalBounds } from "./plugins/arrival.ts";
import type { RateLimiter } from "./rate-limiter.ts";

/** Told by whoever runs the fleet; a model that is not in the record is cold. */
export interface PoolStates {
  poolStates(): Promise<Readonly<Record<string, PoolState>>>;
}

/** How long things may take; tests shorten them. */
export interface Bounds {
  /** A synchronous call that waited this long is cancelled and refunded. */
  readonly syncDeadlineMs: number;
  /** How long a stopping gateway lets its waiting calls finish before it cancels and refunds them. */
  readonly drainMs: number;
  readonly arrival: ArrivalBounds;
}

export const DEFAULT_BOUNDS: Bounds = {
  syncDeadlineMs: SYNC_DEADLINE_MS,
  drainMs: 5_000,
  arrival: ARRIVAL_BOUNDS,
};

export interface GatewayOptions {
  readonly config: Pick<
    Config,
    | "AUTH"
    | "PUBLIC_URL"
    | "DEFAULT_MODEL"
    | "OPERATOR_TOKEN"
    | "GPU_USD_PER_HOUR"
    | "SIGNUP"
    | "TRUSTED_PROXIES"
    | "STRIPE_SECRET_KEY"
    | "STRIPE_WEBHOOK_SECRET"
    | "STRIPE_API_BASE"
    | "OUTBOUND_PRIVATE"
    | "RETENTION_DAYS"
    | "DATASETS_UNFINISHED_MAX"
    | "DATASET_ROWS_UNFINISHED_MAX"
    | "DATASET_IDLE_DAYS"
    | "BACKLOG_MAX_PER_CUSTOMER"
    | "BACKLOG_MAX"
    | "UPLOADS_MAX"
    | "UPLOADS_GB_MAX"
  >;
  readonly db: Database;
  readonly queues: QueueSystem;
  readonly blobs: BlobStore;
  /** At least one; see loadManifests. */
  readonly bundles: readonly Manifest[];
  readonly pools: PoolStates;
  /** Shared with the other gateways where there are several. */
  readonly rateLimiter: RateLimiter;
  readonly clock: Clock;
  readonly random: RandomBytes;
  readonly log: Log;
  /** Where the gateway's metrics go, and what `/metrics` shows. */
  readonly registry: Registry;
  readonly bounds?: Bounds;
}
