import type { Log } from "#platform/log.ts";

import type { QueueSystem } from "./job-queue.ts";
import { createPostgresQueues } from "./postgres.ts";
import { createRedisQueues } from "./redis.ts";

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
