/**
 * Ends rollouts: takes outcomes off the settlement queue and settles them. A job that comes twice settles nothing the
 * second time. One that fails (the database is gone) stays in the queue as failed, where the sweep finds it.
 */
import { parseRolloutId } from "#contract/ids.ts";
import type { SettlementJob } from "#contract/jobs.ts";
import { usdText } from "#contract/mils.ts";
import type { MoneyMetrics } from "#ledger/metrics.ts";
import type { Database } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { settlementQueue } from "#queue/queues.ts";
import { settle } from "#rollouts/settle.ts";

export interface SettlementWorkerOptions {
  readonly db: Database;
  readonly queues: QueueSystem;
  readonly money: MoneyMetrics;
  readonly log: Log;
}

/** Settlements at once: fewer than the pool has connections, and one account serialises its own anyway. */
const CONCURRENCY = 8;

export async function startSettlementWorker({ db, queues, money, log }: SettlementWorkerOptions): Promise<Service> {
  return await settlementQueue(queues).consume({
    concurrency: CONCURRENCY,
    handle: ({ data }) =>
      settleJob(data).catch((error: unknown) => {
        money.settlementFailed("error");
        throw error;
      }),
    onGivenUp: async (jobId, _data, reason) => {
      money.settlementFailed("given_up");
      log.error({ job_id: jobId, reason }, "a settlement was given up; the sweep settles its rollout");
    },
  });

  async function settleJob({ rollout_id, attempt, outcome }: SettlementJob): Promise<void> {
    const id = parseRolloutId(rollout_id);
    if (id === null) throw new Error(`${rollout_id} is no rollout id`); // the job's schema has the same pattern
    const { settled, rollout } = await settle(db, id, attempt, outcome);
    if (settled && rollout) money.moved("refund", rollout.refunded_mils);
    const refunded = rollout === null ? null : usdText(rollout.refunded_mils);
    log.info({ rollout_id, attempt, outcome: outcome.kind, settled, status: rollout?.status, refunded }, "settlement");
    // Also when it had been settled: whoever settled it may have died before telling.
    await queues.signals.publish({ kind: "finished", rollout_id });
  }
}
