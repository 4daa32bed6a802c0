/** Taking back the work of a rollout that ended before its worker was done. */
import { jobIdOf } from "#contract/ids.ts";
import { within } from "#platform/bounded.ts";
import type { Log } from "#platform/log.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { predictJobs } from "#queue/queues.ts";

import type { Rollout } from "./rollout.ts";

/** A refund is never kept waiting by a queue that is away. */
const REMOVE_TIMEOUT_MS = 1_000;

/**
 * Takes its job out of the queue, or has the worker that holds it stop. In this order, because a job that a worker took
 * in between cannot be removed any more, but then its worker hears the signal. Never rejects: what is left in the queue
 * wastes a worker's time and nobody's money.
 */
export async function withdraw(
  { queues, log }: { readonly queues: QueueSystem; readonly log: Log },
  { id, model, lane, attempt }: Pick<Rollout, "id" | "model" | "lane" | "attempt">,
): Promise<void> {
  if (attempt > 0) {
    try {
      const removed = predictJobs(queues, model).remove(jobIdOf(id, attempt), lane);
      await within(REMOVE_TIMEOUT_MS, "remove predict job", removed);
    } catch (error) {
      log.warn({ err: error, rollout_id: id }, "could not take the job of an ended rollout out of the queue");
    }
  }
  await queues.signals.publish({ kind: "cancel", rollout_id: id });
}
