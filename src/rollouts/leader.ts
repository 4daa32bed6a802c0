/**
 * Who of several schedulers acts. A session lock of PostgreSQL picks one; its epoch fences it. The lock alone would
 * not do: a leader whose connection died may not have noticed yet, while another one leads; and a process that is frozen
 * (stopped, on a paused machine, out of reach) keeps its connection, and the lock with it, for ever. So the leader says
 * each second that it lives, by a statement on the lock's own connection, and a standby that has not seen one for
 * SILENT_MS ends the connections of that process and leads. Only the database's clock counts.
 */
import { setTimeout as delay } from "node:timers/promises";

import type { PoolClient } from "pg";

import { within } from "#platform/bounded.ts";
import type { Database } from "#platform/database.ts";

export interface Leadership {
  /** Names this term; what must not happen in two terms at once is bound to it by `fencedBy`. */
  readonly epoch: bigint;
  /** Resolves, never rejects, when the connection that holds the lock is gone, and with it the leadership. */
  readonly lost: Promise<Error>;
  /** Connections that were ended because the leader before had frozen; mostly none. */
  readonly endedOfFrozen: number;
  /** Lets the next one lead. Idempotent. */
  resign(): Promise<void>;
}

/** Any number that nothing else locks: "lead" in ASCII. */
const LEADER_LOCK = 0x6c656164;
const BEAT_EVERY_MS = 1_000;
/** A leader whose database does not answer it for so long steps down by itself. */
const BEAT_TIMEOUT_MS = 5_000;
/**
 * Of the lock's connection. With two looks of a standby, half a second apart, and the half second until the first, a frozen
 * leader is replaced within 4 s of its last statement; 5 s are promised.
 */
const SILENT_MS = 2_500;
/** Right after the database itself was away everybody looks silent: the second look sees who has spoken since. */
const LOOK_AGAIN_AFTER_MS = 500;
/** How long one connection of a frozen process may take to end; it has nobody to wait for. */
const END_TIMEOUT_MS = 1_000;

/** Null when another one leads. `holder` is who people see when they ask who leads. */
export async function tryLead(db: Database, holder: string): Promise<Leadership | null> {
  // The lock lives and dies with this connection, so it is kept out of the pool's hands for the whole term.
  const client = await db.pool.connect();
  const { promise: lost, resolve: onLost } = Promise.withResolvers<Error>();
  const onEnd = (): void => onLost(new Error("the connection that holds the scheduler's lock has ended"));
  client.on("error", onLost);
  client.on("end", onEnd);
  try {
    let endedOfFrozen = 0;
    let locked = await tryLock(client);
    if (!locked) {
      endedOfFrozen = await endFrozen(client);
      locked = endedOfFrozen > 0 && (await tryLock(client));
    }
    if (!locked) {
      // Back to the pool as it came: standbys try twice a second, on the same connection.
      client.off("error", onLost);
      client.off("end", onEnd);
      client.release();
      return null;
    }
    // Waits for writes of the leader before that are under way (fencedBy locks this row); later ones come to nothing.
    const raised = await client.query<{ epoch: bigint }>(
      `UPDATE scheduler_leader SET epoch = epoch + 1, holder = $1, taken_at = now() RETURNING epoch`,
      [holder],
    );
    const epoch = raised.rows[0]?.epoch;
    if (epoch === undefined) throw new Error("scheduler_leader has lost its row");
    const over = new AbortController();
    void beat(client, over.signal).catch(onLost);
    return {
      epoch,
      lost,
      endedOfFrozen,
      async resign() {
        if (over.signal.aborted) return;
        over.abort();
        // Closing the connection gives the lock back, also when it no longer answers.
        client.release(true);
      },
    };
  } catch (error) {
    client.release(true);
    throw error;
  }
}

async function tryLock(client: PoolClient): Promise<boolean> {
  const { rows } = await client.query<{ locked: boolean }>(`SELECT pg_try_advisory_lock($1) AS locked`, [LEADER_LOCK]);
  return rows[0]?.locked === true;
}

/** Rejects when the connection is gone or the database silent; resolves when the term is over. */
async function beat(client: PoolClient, over: AbortSignal): Promise<void> {
  for (;;) {
    await delay(BEAT_EVERY_MS, undefined, { signal: over }).catch(() => undefined);
    if (over.aborted) return;
    await within(BEAT_TIMEOUT_MS, "renew the scheduler's term", client.query("SELECT"));
  }
}

/**
 * Ends every connection of the process that holds the lock, if it has frozen: not the lock's alone, because what it was in the
 * middle of keeps its row locks, the fence's among them. The number of connections that were ended. Whose role we
 * may not act for, and whoever is in the middle of a statement, is left alone.
 */
async function endFrozen(client: PoolClient): Promise<number> {
  const { rows } = await client.query<{ pid: number; last: string }>(
    `SELECT h.pid, h.state_change::text AS last
       FROM pg_locks l JOIN pg_stat_activity h USING (pid)
      WHERE l.locktype = 'advisory' AND l.granted AND l.classid = 0 AND l.objid = $1::bigint AND l.objsubid = 1
        AND h.datname = current_database() AND h.state <> 'active'
        AND h.state_change < clock_timestamp() - $2::float8 * interval '1 ms' AND pg_has_role(h.usesysid, 'USAGE')`,
    [LEADER_LOCK, SILENT_MS],
  );
  const [silent] = rows;
  if (!silent) return 0;
  await delay(LOOK_AGAIN_AFTER_MS);
  const ended = await client.query(
    // Only a process of ours says by its name which connections are its own (database.ts).
    `SELECT pg_terminate_backend(a.pid, $3)
       FROM pg_stat_activity h
       JOIN pg_stat_activity a ON a.pid = h.pid
                               OR (a.application_name = h.application_name AND a.application_name LIKE 'dream-engine %:%'
                                   AND a.usesysid = h.usesysid AND a.datid = h.datid)
      WHERE h.pid = $1 AND h.state_change::text = $2`,
    [silent.pid, silent.last, END_TIMEOUT_MS],
  );
  return ended.rowCount ?? 0;
}

/** A condition for the WHERE of a scheduler's write: true only while the term in that parameter is the current one. */
export const fencedBy = (parameter: `$${number}`): string =>
  `(SELECT epoch FROM scheduler_leader FOR SHARE) = ${parameter}`;
