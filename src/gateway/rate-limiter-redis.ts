/**
 * Buckets in Redis: one script, which Redis runs alone and by its own clock, so any number of gateways grant exactly
 * what one would. Times are microseconds, which a double holds exactly until the year 2255.
 */
import { createHash } from "node:crypto";

import { Redis } from "ioredis";

import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";
import { throttledWarning } from "#queue/throttled-warning.ts";

import { AHEAD_SLACK_MS, decisionOf, intervalMsOf } from "./gcra.ts";
import type { RateLimiter } from "./rate-limiter.ts";

/** gcra.ts's decideRate. Returns whether it was allowed, and how far ahead the bucket is. A bucket goes when it is full. */
const TAKE = `
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval = tonumber(ARGV[1])
local capacity = tonumber(ARGV[2])
local before = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
if before > now + capacity + tonumber(ARGV[3]) then before = now + capacity - interval end
local after = before + interval
if after - now - capacity > 1 then
  return {0, string.format('%.3f', before - now)}
end
redis.call('SET', KEYS[1], string.format('%.3f', after), 'PX', math.ceil((after - now) / 1000))
return {1, string.format('%.3f', after - now)}`;
const TAKE_SHA = createHash("sha1").update(TAKE).digest("hex");

const CONNECT_TIMEOUT_MS = 10_000;
const KEEPALIVE_AFTER_MS = 10_000;
const RECONNECT_MIN_MS = 50;
const RECONNECT_MAX_MS = 2_000;

/** Connects in the background; until then, and while Redis is away, `take` rejects at once. */
export function createRedisRateLimiter({
  url,
  log,
}: {
  readonly url: string;
  readonly log: Log;
}): RateLimiter & Service & { readonly connected: Promise<void> } {
  const redis = new Redis(url, {
    lazyConnect: true,
    connectTimeout: CONNECT_TIMEOUT_MS,
    keepAlive: KEEPALIVE_AFTER_MS,
    retryStrategy: (times) => Math.min(RECONNECT_MIN_MS * 2 ** Math.min(times, 10), RECONNECT_MAX_MS),
    // A request does not wait for Redis to come back, and is not asked a second time after it did.
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
  });
  redis.on("error", throttledWarning(log, "rate limiter's Redis connection error"));

  async function run(args: readonly string[]): Promise<unknown> {
    try {
      return await redis.evalsha(TAKE_SHA, 1, ...args);
    } catch (error) {
      // Redis forgets scripts when it restarts.
      if (error instanceof Error && error.message.startsWith("NOSCRIPT")) {
        return redis.eval(TAKE, 1, ...args);
      }
      throw error;
    }
  }

  return {
    connected: redis.connect(),
    async take(name, policy) {
      const intervalUs = intervalMsOf(policy) * 1000;
      const args = [intervalUs, policy.burst * intervalUs, AHEAD_SLACK_MS * 1000].map(String);
      const [allowed, aheadUs] = (await run([redisKeyOf(name), ...args])) as [0 | 1, string]; // what TAKE returns
      return decisionOf(allowed === 1, Number(aheadUs) / 1000, policy);
    },
    async stop() {
      redis.disconnect();
    },
  };
}

export const redisKeyOf = (name: string): string => `dream.rate.${name}`;
