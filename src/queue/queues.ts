/** The two kinds of queue we have, by name and payload. */
import { Compile } from "typebox/compile";

import { PredictJob, SettlementJob } from "#contract/jobs.ts";

import type { JobQueue, QueueSystem } from "./job-queue.ts";

const predictJob = Compile(PredictJob);
const settlementJob = Compile(SettlementJob);

/** Lanes as BullMQ priorities: whoever waits goes first. */
export const PRIORITY_OF_LANE = { realtime: 1, bulk: 10 } as const;

/** One queue a model, because a worker is pinned to one bundle. */
export const predictQueue = (queues: QueueSystem, model: string): JobQueue<PredictJob> =>
  queues.open(`predict.${model}`, (value) => predictJob.Parse(value));

export const settlementQueue = (queues: QueueSystem): JobQueue<SettlementJob> =>
  queues.open("settlement", (value) => settlementJob.Parse(value));
