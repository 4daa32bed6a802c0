/**
 * Buckets in PostgreSQL, for several gateways without Redis: one statement, decided under the bucket's row lock by the
 * server's clock. The table is unlogged, so a request waits for no disk.
 */
import type { Sql } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";

import { AHEAD_SLACK_MS, decisionOf, intervalMsOf } from "./gcra.ts";
import type { RateLimiter } from "./rate-limiter.ts";

/**
 * gcra.ts's decideRate: name, interval, capacity and slack (microseconds). The clock is read after the row is locked, and
 * again for what is written: a later reading never grants more. A refused request changes no row, because each change
 * would leave a dead one behind; what it is told is read beside it and may be a moment old.
 */
const TAKE = `
  WITH policy AS (
    SELECT $2::float8 * interval '1 microsecond' AS step,
           $3::float8 * interval '1 microsecond' AS capacity,
           $4::float8 * interval '1 microsecond' AS slack
  ), taken AS (
    INSERT INTO rate_buckets AS b (name, full_at)
    SELECT $1, clock_timestamp() + step FROM policy
    ON CONFLICT (name) DO UPDATE
       SET full_at = CASE WHEN b.full_at > clock_timestamp() + (SELECT capacity + slack FROM policy)
                          THEN clock_timestamp() + (SELECT capacity FROM policy)
                          ELSE greatest(b.full_at, clock_timestamp()) + (SELECT step FROM policy) END
     WHERE greatest(b.full_at, clock_timestamp()) + (SELECT step FROM policy)
             <= clock_timestamp() + (SELECT capacity FROM policy)
        OR b.full_at > clock_timestamp() + (SELECT capacity + slack FROM policy)
    RETURNING full_at
  )
  SELECT allowed, (extract(epoch FROM full_at - clock_timestamp()) * 1000)::float8 AS ahead_ms
    FROM (SELECT true AS allowed, full_at FROM taken
          UNION ALL
          SELECT false, full_at FROM rate_buckets WHERE name = $1 AND NOT EXISTS (SELECT FROM taken)) decided`;

const SWEEP_EVERY_MS = 60_000;

export function createPostgresRateLimiter({ db, log }: { readonly db: Sql; readonly log: Log }): RateLimiter & Service {
  let sweeping: Promise<void> | undefined;
  const timer = setInterval(() => {
    sweeping ??= sweepRateBuckets(db)
      .catch((error: unknown) => log.warn({ err: error }, "could not sweep old rate buckets; will try again"))
      .finally(() => (sweeping = undefined));
  }, SWEEP_EVERY_MS);
  timer.unref();

  return {
    async take(name, policy) {
      // Whole microseconds, as the server counts: then a burst is a whole number of steps.
      const stepUs = Math.max(Math.round(intervalMsOf(policy) * 1000), 1);
      const [row] = await db.query<{ allowed: boolean; ahead_ms: number }>(TAKE, [
        name,
        stepUs,
        policy.burst * stepUs,
        AHEAD_SLACK_MS * 1000,
      ]);
      // No row: refused by a bucket that was made after this statement began.
      return row ? decisionOf(row.allowed, row.ahead_ms, policy) : decisionOf(false, Infinity, policy);
    },
    async stop() {
      clearInterval(timer);
      await sweeping;
    },
  };
}

/** A full bucket is the same as none. */
export async function sweepRateBuckets(db: Sql): Promise<void> {
  await db.query(`DELETE FROM rate_buckets WHERE full_at <= clock_timestamp()`);
}
