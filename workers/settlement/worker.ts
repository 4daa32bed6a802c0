/**
 * Ends rollouts: takes outcomes off the settlement queue and settles them. A job that comes twice settles nothing the
 * second time. One that fails (the database is gone) stays in the queue as failed, where the sweep finds it.
 */
import { parseRolloutId } from "#contract/ids.ts";
import type { SettlementJob } from "#contract/jobs.ts";
import { usdText } from "#contract/mils.ts";
import type { Database } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { settlementQueue } from "#queue/queues.ts";
import { settle } from "#rollouts/settle.ts";

export interface SettlementWorkerOptions {
  readonly db: Database;
  readonly queues: QueueSystem;
  readonly log: Log;
}

/** Settlements at once: fewer than the pool has connections, and one account serialises its own anyway. */
const CONCURRENCY = 8;

export async function startSettlementWorker({ db, queues, log }: SettlementWorkerOptions): Promise<Service> {
  return await settlementQueue(queues).consume({
    concurrency: CONCURRENCY,
    handle: ({ data }) => settleJob(data),
    onGivenUp: async (jobId, _data, reason) => {
      log.error({ job_id: jobId, reason }, "a settlement was given up; the sweep settles its rollout");
    },
  });

  async function settleJob({ rollout_id, attempt, outcome }: SettlementJob): Promise<void> {
    const id = parseRolloutId(rollout_id);
    if (id === null) throw new Error(`${rollout_id} is no rollout id`); // the job's schema has the same pattern
    const { settled, rollout } = await settle(db, id, attempt, outcome);
    const refunded = rollout === null ? null : usdText(rollout.refunded_mils);
    log.info({ rollout_id, attempt, outcome: outcome.kind, settled, status: rollout?.status, refunded }, "settlement");
    // Also when it had been settled: whoever settled it may have died before telling.
    await queues.signals.publish({ kind: "finished", rollout_id });
  }
}
