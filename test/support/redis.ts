/**
 * Each test file takes its own database of the run's Redis; our signal channels carry the database's number, so files
 * do not hear each other.
 */
import { Redis } from "ioredis";
import { inject } from "vitest";

import { REDIS_DATABASES } from "./redis-server.ts";

declare module "vitest" {
  interface ProvidedContext {
    redisUrl: string;
  }
}

/** A database of the run's server that no other test uses. */
export async function freshRedisUrl(): Promise<string> {
  const server = inject("redisUrl");
  const redis = new Redis(server);
  try {
    const database = await redis.incr("databases-taken"); // kept in database 0
    if (database >= REDIS_DATABASES) throw new Error(`the tests need more than ${REDIS_DATABASES} Redis databases`);
    return `${server}/${database}`;
  } finally {
    redis.disconnect();
  }
}
