/** Which form of the limiter a gateway has: Redis when there is one, else the database that it shares, else its own. */
import { Counter, type Registry } from "prom-client";

import { settlesWithin } from "#platform/bounded.ts";
import type { Clock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";
import { throttledWarning } from "#queue/throttled-warning.ts";

import type { RateLimiter } from "./rate-limiter.ts";
import { createFallbackRateLimiter } from "./rate-limiter-fallback.ts";
import { createLocalRateLimiter } from "./rate-limiter-local.ts";
import { createPostgresRateLimiter } from "./rate-limiter-postgres.ts";
import { createRedisRateLimiter } from "./rate-limiter-redis.ts";

/** A healthy Redis answers within a millisecond. */
const REDIS_LIMIT_MS = 100;
/** The statement shares the gateway's pool with everything else. */
const POSTGRES_LIMIT_MS = 1_000;
/** How long a start waits for Redis; the gateway may begin without it. */
const REDIS_CONNECT_MS = 2_000;

export interface OpenRateLimiterOptions {
  readonly redis_url: string | undefined;
  /** The database that other gateways use, too; null where this process is the only gateway (embedded PostgreSQL). */
  readonly sharedDb: Database | null;
  readonly clock: Clock;
  readonly log: Log;
  readonly registry: Registry;
}

export async function openRateLimiter(options: OpenRateLimiterOptions): Promise<RateLimiter & Service> {
  const { redis_url, sharedDb, clock, log, registry } = options;
  const local = createLocalRateLimiter(clock);
  const fallbacks = new Counter({
    name: "dream_rate_limit_fallbacks_total",
    help: "Requests counted by this gateway alone, because the shared rate limiter did not answer.",
    registers: [registry],
  });
  const warn = throttledWarning(log, "the shared rate limiter does not answer; this gateway counts by itself");
  const onFallback = (error: Error | null): void => {
    fallbacks.inc();
    if (error) warn(error);
  };

  if (redis_url !== undefined) {
    const shared = createRedisRateLimiter({ url: redis_url, log });
    // A failure is in the log by its error event; the client goes on trying.
    await settlesWithin(
      REDIS_CONNECT_MS,
      shared.connected.catch(() => undefined),
    );
    const limiter = createFallbackRateLimiter({ shared, local, limitMs: REDIS_LIMIT_MS, onFallback });
    return { ...limiter, stop: () => shared.stop() };
  }
  if (sharedDb) {
    const shared = createPostgresRateLimiter({ db: sharedDb, log });
    const limiter = createFallbackRateLimiter({ shared, local, limitMs: POSTGRES_LIMIT_MS, onFallback });
    return { ...limiter, stop: () => shared.stop() };
  }
  return { ...local, stop: async () => undefined };
}
