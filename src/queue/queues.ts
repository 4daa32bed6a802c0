/** The kinds of queue we have, by name and payload. */
import type { JobId } from "#contract/ids.ts";
import { PredictJob, SettlementJob } from "#contract/jobs.ts";
import type { Lane } from "#contract/rollout.ts";

import type { JobQueue, QueueSystem } from "./job-queue.ts";
import { parserOf } from "./parse.ts";

const parsePredictJob = parserOf(PredictJob);
const parseSettlementJob = parserOf(SettlementJob);

/**
 * Two queues a model, because a worker is pinned to one bundle, and takes what somebody waits for also when it is full
 * of what nobody waits for.
 */
export const predictQueue = (queues: QueueSystem, model: string, lane: Lane): JobQueue<PredictJob> =>
  queues.open(lane === "realtime" ? `predict.${model}` : `predict.${model}.bulk`, parsePredictJob);

/** Both queues of a model, for whoever looks for a job, takes one back, or counts. */
export interface PredictJobs {
  find(jobId: JobId, lane: Lane): ReturnType<JobQueue<PredictJob>["find"]>;
  remove(jobId: JobId, lane: Lane): Promise<boolean>;
  counts(): ReturnType<JobQueue<PredictJob>["counts"]>;
}

/**
 * Before there were lanes, bulk jobs stood in what is the realtime queue now. Those that an older version left there are
 * run from there, and found there: a bulk job is looked for in its own queue first, then in the other.
 */
export function predictJobs(queues: QueueSystem, model: string): PredictJobs {
  const realtime = predictQueue(queues, model, "realtime");
  const bulk = predictQueue(queues, model, "bulk");
  return {
    async find(jobId, lane) {
      const own = lane === "bulk" ? await bulk.find(jobId) : null;
      return own ?? (await realtime.find(jobId));
    },
    async remove(jobId, lane) {
      const own = lane === "bulk" && (await bulk.remove(jobId));
      return own || (await realtime.remove(jobId));
    },
    async counts() {
      const [one, other] = await Promise.all([realtime.counts(), bulk.counts()]);
      return {
        waiting: one.waiting + other.waiting,
        active: one.active + other.active,
        failed: one.failed + other.failed,
      };
    },
  };
}

export const settlementQueue = (queues: QueueSystem): JobQueue<SettlementJob> =>
  queues.open("settlement", parseSettlementJob);
