import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";

import type { QueueSystem } from "./job-queue.ts";
import { createPostgresQueues, createPostgresSignals } from "./postgres.ts";
import { createRedisQueues, createRedisSignals } from "./redis.ts";
import type { Signals } from "./signals.ts";

/** Redis when there is one, else inside the database (`migrate`: see createPostgresQueues). */
export async function openQueues({
  redis_url,
  database_url,
  migrate,
  log,
}: {
  readonly redis_url: string | undefined;
  /** Needed where there is no Redis; a worker on Redis has none. */
  readonly database_url: string | undefined;
  readonly migrate: boolean;
  readonly log: Log;
}): Promise<QueueSystem> {
  if (redis_url !== undefined) return createRedisQueues({ url: redis_url, log });
  if (database_url === undefined) throw new Error("a queue needs Redis or a database, got neither");
  return createPostgresQueues({ url: database_url, migrate, log });
}

/** Of the same backend, for who only listens and tells: no jobs are in reach, and no right in the database is needed. */
export async function openSignals({
  redis_url,
  database_url,
  log,
}: {
  readonly redis_url: string | undefined;
  readonly database_url: string;
  readonly log: Log;
}): Promise<Signals & Service> {
  if (redis_url !== undefined) return createRedisSignals({ url: redis_url, log });
  return createPostgresSignals({ url: database_url, log });
}
