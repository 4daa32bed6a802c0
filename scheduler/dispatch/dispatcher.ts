/**
 * Moves rollouts from the backlog to the queues: commits `queued → dispatched` first and adds the job then. Adding
 * first would run a fast job twice, or a cancelled one; a crash in between is found by the sweep, which adds the job
 * under the same id.
 */
import { jobIdOf } from "#contract/ids.ts";
import type { Manifest } from "#contract/manifest.ts";
import type { Lane } from "#contract/rollout.ts";
import { within } from "#platform/bounded.ts";
import type { Clock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";
import {
  markDispatched,
  predictJobOf,
  type Queued,
  readBacklog,
  readCalledOff,
  readInFlight,
  readScoredBacklog,
} from "#rollouts/dispatch.ts";
import { withdraw } from "#rollouts/withdraw.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { predictQueue } from "#queue/queues.ts";

import { startLoop } from "#platform/loop.ts";
import type { SchedulerMetrics } from "../metrics.ts";
import { chooseNext, estimateHeld } from "./policy.ts";

/** In case a signal was lost. */
const DISPATCH_EVERY_MS = 1_000;
/** A queue that is away keeps its callers waiting; what was committed and not added is the sweep's by then. */
const QUEUE_TIMEOUT_MS = 5_000;
/** Who has somebody waiting is marked and added first. */
const LANES = ["realtime", "bulk"] as const satisfies readonly Lane[];
/** Rows of a lane looked at in one go; a full target of the largest fleet fits. */
const BACKLOG_ROWS_MAX = 200;

export interface DispatcherOptions {
  readonly db: Database;
  readonly queues: QueueSystem;
  readonly models: readonly Manifest[];
  readonly epoch: bigint;
  /** Live workers of a model, or null when this process does not know (they are another deployment). */
  readonly liveWorkers: (model: string) => number | null;
  /** Scored rollouts that a customer may have dispatched at once, of all models together. */
  readonly scoredAtOnceMax: number;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: SchedulerMetrics;
}

export async function startDispatcher(options: DispatcherOptions): Promise<Service> {
  const { queues, models, log } = options;
  const loop = startLoop({
    name: "dispatch",
    everyMs: DISPATCH_EVERY_MS,
    log,
    run: async (signal) => {
      for (const model of models) await dispatchModel(model, options, signal);
    },
  });
  const unsubscribe = await queues.signals.subscribe(["queued", "finished"], () => loop.wake());
  return {
    async stop() {
      await loop.stop();
      await unsubscribe();
    },
  };
}

/** Fills both queues of one model, each up to a target of its own: what nobody waits for takes no place from the rest. */
async function dispatchModel(manifest: Manifest, options: DispatcherOptions, signal: AbortSignal): Promise<void> {
  const { db, queues, epoch, clock, metrics } = options;
  const model = manifest.slug;
  const backlog = await Promise.all(LANES.map((lane) => readLane(model, lane, options)));
  metrics.backlog.set({ model }, backlog.flat().length);
  if (backlog.flat().length === 0) return;

  const inFlight = await readInFlight(db, model);
  const held = await heldByWorkers(manifest, inFlight, options);
  const ids = LANES.flatMap((lane, i) => {
    const rows = (backlog[i] ?? []).map(({ id, k, deadline_at }) => ({ id, k, deadline_ms: deadline_at.getTime() }));
    return chooseNext(rows, { held, in_flight: inFlight[lane].samples }, clock.now()).map(({ id }) => id);
  });
  if (ids.length === 0 || signal.aborted) return;

  const dispatched = await markDispatched(db, epoch, ids);
  for (const rollout of dispatched) {
    const queue = predictQueue(queues, model, rollout.lane);
    const added = queue.add(jobIdOf(rollout.id, rollout.attempt), predictJobOf(rollout));
    await within(QUEUE_TIMEOUT_MS, "add predict job", added);
    metrics.dispatched.inc({ model });
  }
  // Whoever called one off between the commit and the add found no job to remove.
  const calledOff = await readCalledOff(
    db,
    dispatched.map(({ id }) => id),
  );
  for (const rollout of calledOff) await withdraw(options, rollout);
}

/** What of the backlog may go now, oldest first; scored rollouts are in the bulk lane. */
async function readLane(model: string, lane: Lane, { db, scoredAtOnceMax }: DispatcherOptions): Promise<Queued[]> {
  const plain = readBacklog(db, model, lane, BACKLOG_ROWS_MAX);
  if (lane === "realtime") return plain;
  const scored = readScoredBacklog(db, model, scoredAtOnceMax, BACKLOG_ROWS_MAX);
  const rows = (await Promise.all([plain, scored])).flat();
  // Stable: where two came in the same millisecond, each part keeps the order that the database gave it.
  return rows.sort((a, b) => a.created_at.getTime() - b.created_at.getTime());
}

/** Samples of one lane that the workers can hold at once: a worker has room for as many of either. */
async function heldByWorkers(
  { slug: model, engine: { max_batch_samples: perWorker } }: Manifest,
  inFlight: Awaited<ReturnType<typeof readInFlight>>,
  { queues, liveWorkers }: DispatcherOptions,
): Promise<number> {
  const workers = liveWorkers(model);
  // A fleet that is still starting gets one worker's load: it finds work when it is warm.
  if (workers !== null) return Math.max(1, workers) * perWorker;
  const estimates = LANES.map(async (lane) => {
    const { waiting } = await within(QUEUE_TIMEOUT_MS, "count jobs", predictQueue(queues, model, lane).counts());
    return estimateHeld(inFlight[lane], waiting, perWorker);
  });
  return Math.max(...(await Promise.all(estimates)));
}
