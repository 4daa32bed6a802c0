/**
 * When each key was last used, for `keys list`: noted in memory by every request, written in batches. What was noted since
 * the last flush is lost with the process, which costs nobody anything.
 */
import type { KeyId } from "#contract/ids.ts";
import type { Clock } from "#platform/clock.ts";
import type { Sql } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";

const FLUSH_EVERY_MS = 30_000;
/** Keys held at most; further ones are noted when they are used after the next flush. */
const KEYS_MAX = 20_000;

export interface UsageNotes {
  note(key: KeyId): void;
}

export interface UsageOptions {
  readonly db: Sql;
  readonly clock: Clock;
  readonly log: Log;
  readonly flushEveryMs?: number;
  readonly keysMax?: number;
}

/** `stop` writes what is left. */
export function startUsageNotes(options: UsageOptions): UsageNotes & Service {
  const { db, clock, log, flushEveryMs = FLUSH_EVERY_MS, keysMax = KEYS_MAX } = options;
  let noted = new Map<KeyId, number>();
  let flushing: Promise<void> | undefined;

  function note(key: KeyId, at = clock.now()): void {
    if (noted.size < keysMax || noted.has(key)) noted.set(key, Math.max(at, noted.get(key) ?? 0));
  }

  async function flush(): Promise<void> {
    if (noted.size === 0) return;
    const batch = noted;
    noted = new Map();
    try {
      await writeUsage(db, batch);
    } catch (error) {
      log.warn({ err: error }, "could not note when keys were used; will try again");
      for (const [key, at] of batch) note(key, at);
    }
  }

  const timer = setInterval(() => {
    flushing ??= flush().finally(() => (flushing = undefined));
  }, flushEveryMs);
  timer.unref();

  async function stop(): Promise<void> {
    clearInterval(timer);
    await flushing;
    await flush();
  }
  let stopped: Promise<void> | undefined;
  return { note: (key) => note(key), stop: () => (stopped ??= stop()) };
}

/** One statement; several gateways write in the same order of keys, so none waits for another in a circle. */
async function writeUsage(db: Sql, usedAtMs: ReadonlyMap<KeyId, number>): Promise<void> {
  await db.query(
    `INSERT INTO api_key_usage AS u (key_id, last_used_at)
     SELECT key_id, to_timestamp(ms / 1000) FROM unnest($1::text[], $2::float8[]) AS used (key_id, ms) ORDER BY key_id
     ON CONFLICT (key_id) DO UPDATE SET last_used_at = excluded.last_used_at
      WHERE u.last_used_at < excluded.last_used_at`,
    [[...usedAtMs.keys()], [...usedAtMs.values()]],
  );
}
