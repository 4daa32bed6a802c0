/** A runner in a process of its own, to be killed. Its lease is short, so that the next one need not wait. */
import { randomBytes } from "node:crypto";

import { Registry } from "prom-client";

import { createFsBlobs } from "#blobs/fs.ts";
import { loadManifests } from "#platform/bundles.ts";
import { systemClock } from "#platform/clock.ts";
import { createDatabase } from "#platform/database.ts";
import { createLog } from "#platform/log.ts";
import { createOutbound } from "#platform/outbound.ts";
import { openQueues } from "#queue/open-queues.ts";
import { startRunner } from "#workers/runner/runner.ts";

function required(name: string): string {
  const value = process.env[name];
  if (value === undefined) throw new Error(`${name} is not set`);
  return value;
}

const log = createLog("test", "silent");
await startRunner({
  db: createDatabase({ url: required("RUNNER_URL"), log }),
  queues: await openQueues({ redis_url: undefined, database_url: required("QUEUE_URL"), migrate: false, log }),
  blobs: createFsBlobs(required("BLOBS")),
  models: await loadManifests("models"),
  outbound: createOutbound({ allowPrivate: true }),
  backlog: { per_customer: 10_000, all: 100_000 },
  clock: systemClock,
  random: randomBytes,
  log,
  registry: new Registry(),
  leaseMs: 500,
});
process.send?.("running");
