import type { Log } from "#platform/log.ts";

import type { QueueSystem } from "./job-queue.ts";
import { createPostgresQueues } from "./postgres.ts";
import { createRedisQueues } from "./redis.ts";

/** Redis when there is one, else inside the database (`migrate`: see createPostgresQueues). */
export function openQueues({
  redis_url,
  database_url,
  migrate,
  log,
}: {
  readonly redis_url: string | undefined;
  readonly database_url: string;
  readonly migrate: boolean;
  readonly log: Log;
}): Promise<QueueSystem> {
  return redis_url === undefined
    ? createPostgresQueues({ url: database_url, migrate, log })
    : createRedisQueues({ url: redis_url, log });
}
