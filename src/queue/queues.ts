/** The two kinds of queue we have, by name and payload. */
import { PredictJob, SettlementJob } from "#contract/jobs.ts";

import type { JobQueue, QueueSystem } from "./job-queue.ts";
import { parserOf } from "./parse.ts";

const parsePredictJob = parserOf(PredictJob);
const parseSettlementJob = parserOf(SettlementJob);

/** Lanes as BullMQ priorities: whoever waits goes first. */
export const PRIORITY_OF_LANE = { realtime: 1, bulk: 10 } as const;

/** One queue a model, because a worker is pinned to one bundle. */
export const predictQueue = (queues: QueueSystem, model: string): JobQueue<PredictJob> =>
  queues.open(`predict.${model}`, parsePredictJob);

export const settlementQueue = (queues: QueueSystem): JobQueue<SettlementJob> =>
  queues.open("settlement", parseSettlementJob);
