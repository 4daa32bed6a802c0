/** A gateway alone in its process, as in production: what it holds in memory is nobody else's. Ends with its standard input. */
import { randomBytes } from "node:crypto";

import { Registry } from "prom-client";

import { createFsBlobs } from "#blobs/fs.ts";
import { createLocalRateLimiter } from "#gateway/rate-limiter-local.ts";
import { startGateway } from "#gateway/server.ts";
import { systemClock } from "#platform/clock.ts";
import { readConfig } from "#platform/config.ts";
import { createDatabase } from "#platform/database.ts";
import { createLog } from "#platform/log.ts";
import { createPostgresQueues } from "#queue/postgres.ts";
import { ARM, PUSHER } from "#test/gateway/support/models.ts";

const [databaseUrl = "", queueUrl = "", blobFolder = ""] = process.argv.slice(2);
const log = createLog("test", "error");
const db = createDatabase({ url: databaseUrl, log });
const queues = await createPostgresQueues({ url: queueUrl, log, migrate: true });
const gateway = await startGateway({
  config: readConfig({}),
  db,
  queues,
  blobs: createFsBlobs(blobFolder),
  bundles: [ARM, PUSHER],
  pools: { poolStates: async () => ({}) },
  rateLimiter: createLocalRateLimiter(systemClock),
  clock: systemClock,
  random: randomBytes,
  log,
  registry: new Registry(),
  host: "127.0.0.1",
  port: 0,
});
console.log(gateway.url);
for await (const _nothing of process.stdin);
await gateway.stop();
await queues.stop();
await db.stop();
