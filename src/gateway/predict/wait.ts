/** Waiting for rollouts to finish: woken by signals, and looking for itself, because a signal may get lost. */
import type { CustomerId, RolloutId } from "#contract/ids.ts";
import type { Clock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { findRollout } from "#rollouts/find.ts";
import { isTerminal } from "#rollouts/lifecycle.ts";
import type { Rollout } from "#rollouts/rollout.ts";

/** How long a waiting call trusts the signals before it looks, doubling up to the maximum. */
const POLL_FIRST_MS = 500;
const POLL_MAX_MS = 2_000;

export interface FinishWaits extends Service {
  /**
   * The finished rollout, or null when `until` (epoch ms) passed or `signal` aborted first. A database that cannot
   * be reached for a while is waited out: the rollout goes on without it.
   */
  untilFinished(id: RolloutId, customerId: CustomerId, until: number, signal: AbortSignal): Promise<Rollout | null>;
  /** Calls of this process that wait for that rollout now. */
  waiting(id: RolloutId): number;
}

export async function createFinishWaits(parts: {
  db: Database;
  queues: QueueSystem;
  clock: Clock;
  log: Log;
}): Promise<FinishWaits> {
  const { db, queues, clock, log } = parts;
  /** One function a waiting call, which ends its nap. */
  const wakers = new Map<string, Set<() => void>>();
  const unsubscribe = await queues.signals.subscribe(["finished"], (signal) => {
    if (signal.kind !== "finished") return;
    for (const wake of wakers.get(signal.rollout_id) ?? []) wake();
  });

  async function look(id: RolloutId, customerId: CustomerId): Promise<Rollout | null> {
    try {
      const rollout = await findRollout(db, id, customerId);
      return rollout && isTerminal(rollout.status) ? rollout : null;
    } catch (error) {
      log.warn({ err: error, rollout_id: id }, "could not look whether a rollout has finished; will look again");
      return null;
    }
  }

  return {
    async untilFinished(id, customerId, until, signal) {
      // A signal between a look and the nap after it must not be missed, so it is remembered.
      let woken = false;
      let wake: (() => void) | undefined;
      const waker = (): void => {
        woken = true;
        wake?.();
      };
      const others = wakers.get(id) ?? new Set();
      wakers.set(id, others.add(waker));
      signal.addEventListener("abort", waker);
      try {
        for (let pollMs = POLL_FIRST_MS; ; pollMs = Math.min(2 * pollMs, POLL_MAX_MS)) {
          woken = false;
          const finished = await look(id, customerId);
          const leftMs = until - clock.now();
          if (finished || signal.aborted || leftMs <= 0) return finished;
          await new Promise<void>((resolve) => {
            const timer = setTimeout(resolve, Math.min(pollMs, leftMs));
            wake = () => {
              clearTimeout(timer);
              resolve();
            };
            if (woken) wake();
          });
        }
      } finally {
        signal.removeEventListener("abort", waker);
        others.delete(waker);
        if (others.size === 0) wakers.delete(id);
      }
    },
    waiting: (id) => wakers.get(id)?.size ?? 0,
    stop: unsubscribe,
  };
}
