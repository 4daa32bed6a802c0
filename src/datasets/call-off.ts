/**
 * Calling a dataset off: what runs is cancelled and refunded as any rollout is, what waits never runs. In small steps,
 * because a quarter of a million rows in one statement would hold everything up.
 */
import type { RolloutId } from "#contract/ids.ts";
import type { Mils } from "#contract/mils.ts";
import type { Database } from "#platform/database.ts";
import type { Log } from "#platform/log.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { settle } from "#rollouts/settle.ts";
import { withdraw } from "#rollouts/withdraw.ts";

import { lockMine, type Turn } from "./turn.ts";

/** Rows that wait, of one transaction. */
const PENDING_AT_ONCE = 2_000;
/** Rollouts that are cancelled in one step, one after the other: they share the customer's account. */
const RUNNING_AT_ONCE = 64;

export interface CallOffParts {
  readonly db: Database;
  readonly queues: QueueSystem;
  readonly log: Log;
  readonly refunded: (amount: Mils) => void;
}

/** How many rows and rollouts it ended; null when the turn is another one's by now. */
export async function callOffSome(turn: Turn, parts: CallOffParts, signal: AbortSignal): Promise<number | null> {
  const pending = await callOffPending(turn, parts.db);
  if (pending === null) return null;
  return pending + (await cancelRunning(turn, parts, signal));
}

async function callOffPending(turn: Turn, db: Database): Promise<number | null> {
  return await db.transaction(async (tx) => {
    const dataset = await lockMine(tx, turn);
    if (!dataset) return null;
    if (dataset.state !== "cancelling" || dataset.rows_pending === 0) return 0;
    const [called] = await tx.query<{ rows: number }>(
      `WITH called AS (
         UPDATE dataset_rows SET state = 'cancelled', finished_at = now()
          WHERE dataset_id = $1 AND state = 'pending'
            AND n <= (SELECT max(n) FROM (SELECT n FROM dataset_rows WHERE dataset_id = $1 AND state = 'pending'
                                           ORDER BY n LIMIT $2) next)
         RETURNING n
       )
       UPDATE datasets d SET rows_pending = d.rows_pending - c.rows, rows_cancelled = d.rows_cancelled + c.rows
         FROM (SELECT count(*)::int AS rows FROM called) c
        WHERE d.id = $1
       RETURNING c.rows`,
      [dataset.id, PENDING_AT_ONCE],
    );
    return called?.rows ?? 0;
  });
}

/** Ends their rollouts; the rows follow when they are collected. Ending one that has ended changes nothing. */
async function cancelRunning(turn: Turn, parts: CallOffParts, signal: AbortSignal): Promise<number> {
  const running = await parts.db.query<{ rollout_id: RolloutId }>(
    // LIMIT 1 as in collect.ts.
    `SELECT r.rollout_id
       FROM (SELECT rollout_id FROM dataset_rows
              WHERE dataset_id = $1 AND state = 'running'
                AND (SELECT state FROM datasets WHERE id = $1) = 'cancelling' ORDER BY n) d,
            LATERAL (SELECT id AS rollout_id FROM rollouts WHERE id = d.rollout_id AND finished_at IS NULL LIMIT 1) r
      LIMIT $2`,
    [turn.dataset_id, RUNNING_AT_ONCE],
  );
  let ended = 0;
  for (const { rollout_id } of running) {
    if (signal.aborted) break;
    const { settled, rollout } = await settle(parts.db, rollout_id, null, { kind: "cancelled", frames_delivered: 0 });
    if (!settled || !rollout) continue;
    ended += 1;
    parts.refunded(rollout.refunded_mils);
    await withdraw(parts, rollout);
  }
  return ended;
}
