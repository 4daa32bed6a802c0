/** A gateway on a database, a queue and a blob store of its own, with a scripted worker behind it. */
import { randomBytes } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { Registry } from "prom-client";

import type { BlobStore } from "#blobs/blob-store.ts";
import { createFsBlobs } from "#blobs/fs.ts";
import { type Mils, mils } from "#contract/mils.ts";
import { createGateway, type Gateway } from "#gateway/app.ts";
import type { PoolState } from "#contract/pool.ts";
import { DEFAULT_BOUNDS, type GatewayOptions } from "#gateway/gateway-parts.ts";
import { createLocalRateLimiter } from "#gateway/rate-limiter-local.ts";
import { startGateway } from "#gateway/server.ts";
import { type CreatedKey, createKey } from "#keys/keys.ts";
import type { Database } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import { systemClock } from "#platform/clock.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { createPostgresQueues } from "#queue/postgres.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "#test/support/postgres.ts";

import { GATEWAY_CONFIG } from "./gateway-config.ts";
import { ARM, PUSHER } from "./models.ts";
import { type ScriptedWorker, startScriptedWorker } from "./scripted-worker.ts";

export interface TestGateway {
  readonly gateway: Gateway;
  readonly app: Gateway["app"];
  readonly options: GatewayOptions;
  readonly db: Database;
  readonly as: TestDatabase["as"];
  readonly queues: QueueSystem;
  readonly blobs: BlobStore;
  readonly worker: ScriptedWorker;
  /** Slugs that are not "cold". */
  readonly pools: Record<string, PoolState>;
  /** A key of a new customer. */
  newKey(credits?: Mils, limits?: { rate_per_s?: number; burst?: number }): Promise<CreatedKey>;
  /** The same gateway once more, on a port; stopped with the rest. */
  listen(): Promise<Service & { readonly url: string }>;
  stop(): Promise<void>;
}

export type GatewayOverrides = Partial<Omit<GatewayOptions, "config">> & {
  readonly config?: Partial<GatewayOptions["config"]>;
};

/** `wrapDb` puts something between the gateway and its database, for what only a failing one shows. */
export async function startTestGateway(
  { config, ...overrides }: GatewayOverrides = {},
  wrapDb: (db: Database) => Database = (db) => db,
): Promise<TestGateway> {
  const database = await createTestDatabase();
  const { db, url } = database;
  const queues = await createPostgresQueues({ url, log: silentLog, migrate: true });
  const blobDir = await mkdtemp(join(tmpdir(), "dream-engine-gateway-"));
  const blobs = overrides.blobs ?? createFsBlobs(blobDir);
  const bundles = [ARM, PUSHER];
  const pools: Record<string, PoolState> = {};
  const options: GatewayOptions = {
    config: { ...GATEWAY_CONFIG, ...config },
    db: wrapDb(database.as("gateway")),
    queues,
    blobs,
    bundles,
    pools: { poolStates: async () => pools },
    rateLimiter: createLocalRateLimiter(overrides.clock ?? systemClock),
    clock: systemClock,
    random: randomBytes,
    log: silentLog,
    registry: new Registry(),
    bounds: DEFAULT_BOUNDS,
    ...overrides,
  };
  const worker = await startScriptedWorker({
    db,
    queues,
    blobs,
    videoSize: (model) => bundles.find(({ slug }) => slug === model)?.shapes ?? PUSHER.shapes,
  });
  const gateway = await createGateway(options);
  const servers: Service[] = [];
  let customers = 0;

  return {
    gateway,
    app: gateway.app,
    options,
    db,
    as: (part) => database.as(part),
    queues,
    blobs,
    worker,
    pools,
    newKey(credits = mils(1_000_000), limits = {}) {
      customers += 1;
      return createKey(
        db,
        { customer: `caller-${customers}@example.com`, initial_credits: credits, ...limits },
        randomBytes,
      );
    },
    async listen() {
      const server = await startGateway({ ...options, registry: new Registry(), host: "127.0.0.1", port: 0 });
      servers.push(server);
      return server;
    },
    async stop() {
      for (const server of servers) await server.stop();
      await gateway.app.close();
      await worker.stop();
      await queues.stop();
      await database.drop();
      await rm(blobDir, { recursive: true, force: true });
    },
  };
}
