/**
 * Who of several schedulers acts. A session lock of PostgreSQL picks one; its epoch fences it. The lock alone would
 * not do: a leader whose connection died may not have noticed yet, while another one leads.
 */
import type { Database } from "#platform/database.ts";

export interface Leadership {
  /** Names this term; what must not happen in two terms at once is bound to it by `fencedBy`. */
  readonly epoch: bigint;
  /** Resolves, never rejects, when the connection that holds the lock is gone, and with it the leadership. */
  readonly lost: Promise<Error>;
  /** Lets the next one lead. Idempotent. */
  resign(): Promise<void>;
}

/** Any number that nothing else locks: "lead" in ASCII. */
const LEADER_LOCK = 0x6c656164;

/** Null when another one leads. `holder` is who people see when they ask who leads. */
export async function tryLead(db: Database, holder: string): Promise<Leadership | null> {
  // The lock lives and dies with this connection, so it is kept out of the pool's hands for the whole term.
  const client = await db.pool.connect();
  const { promise: lost, resolve: onLost } = Promise.withResolvers<Error>();
  const onEnd = (): void => onLost(new Error("the connection that holds the scheduler's lock has ended"));
  client.on("error", onLost);
  client.on("end", onEnd);
  try {
    const locked = await client.query<{ locked: boolean }>(`SELECT pg_try_advisory_lock($1) AS locked`, [LEADER_LOCK]);
    if (locked.rows[0]?.locked !== true) {
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
    let resigned = false;
    return {
      epoch,
      lost,
      async resign() {
        if (resigned) return;
        resigned = true;
        // Closing the connection gives the lock back, also when it no longer answers.
        client.release(true);
      },
    };
  } catch (error) {
    client.release(true);
    throw error;
  }
}

/** A condition for the WHERE of a scheduler's write: true only while the term in that parameter is the current one. */
export const fencedBy = (parameter: `$${number}`): string =>
  `(SELECT epoch FROM scheduler_leader FOR SHARE) = ${parameter}`;
