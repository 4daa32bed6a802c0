/**
 * Cancelling a rollout that nobody waits for any more, or that its owner does not want: settled and refunded in full, its
 * work taken back, and whoever waits for it told. One at a time for each customer: whose calls all end at once must not
 * have every connection wait for one account.
 */
import { setTimeout as delay } from "node:timers/promises";

import type { CustomerId, RolloutId } from "#contract/ids.ts";
import type { MoneyMetrics } from "#ledger/metrics.ts";
import type { Clock } from "#platform/clock.ts";
import { type Database, STATEMENT_TIMEOUT_MS } from "#platform/database.ts";
import type { Log } from "#platform/log.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { isTerminal } from "#rollouts/lifecycle.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import { settle } from "#rollouts/settle.ts";
import type { Turns } from "#rollouts/turns.ts";
import { withdraw } from "#rollouts/withdraw.ts";

export interface CancelParts {
  readonly db: Database;
  readonly queues: QueueSystem;
  readonly clock: Clock;
  readonly money: MoneyMetrics;
  readonly log: Log;
  readonly turns: Turns;
  /** Aborts when this server stops and its grace is over. */
  readonly stopping: AbortSignal;
}

/** Which rollout, and whose: the account that its refund goes to. */
export interface Unwanted {
  readonly id: RolloutId;
  readonly customer_id: CustomerId;
}

/** The rollout as it then is: cancelled, or as it had ended before; null when there is no such rollout. */
export async function cancel(parts: CancelParts, { id, customer_id }: Unwanted): Promise<Rollout | null> {
  const { settled, rollout } = await parts.turns.inTurn(customer_id, () =>
    settle(parts.db, id, null, { kind: "cancelled", frames_delivered: 0 }),
  );
  if (settled && rollout) {
    parts.money.moved("refund", rollout.refunded_mils);
    await withdraw(parts, rollout);
    await parts.queues.signals.publish({ kind: "finished", rollout_id: id });
  }
  return rollout;
}

const RETRY_FIRST_MS = 500;
const RETRY_MAX_MS = 5_000;
/** An acceptance that the server had taken up when its connection broke has come to its end after this. */
const ACCEPTANCE_MAX_MS = STATEMENT_TIMEOUT_MS + 5_000;

/**
 * Cancels until it is done, however long the database is away, also a rollout whose acceptance is unknown: the broken
 * connection's statement may still wait for a lock, so where nothing is found we go on looking for as long as it can.
 * The sweep does the rest: at the deadline, and as soon as a server that stops has given its lease back.
 */
export async function cancelPatiently(parts: CancelParts, unwanted: Unwanted, deadlineMs: number): Promise<void> {
  const { clock, log, stopping } = parts;
  let missingSinceMs: number | undefined;
  for (let pauseMs = RETRY_FIRST_MS; ; pauseMs = Math.min(2 * pauseMs, RETRY_MAX_MS)) {
    await delay(pauseMs, undefined, { signal: stopping }).catch(() => undefined); // stopping ends it early
    if (stopping.aborted || clock.now() > deadlineMs) return;
    try {
      const rollout = await cancel(parts, unwanted);
      if (rollout && isTerminal(rollout.status)) return;
      missingSinceMs ??= clock.now();
      if (clock.now() - missingSinceMs > ACCEPTANCE_MAX_MS) return;
    } catch (error) {
      log.warn({ err: error, rollout_id: unwanted.id }, "could not cancel a rollout; will try again");
    }
  }
}
