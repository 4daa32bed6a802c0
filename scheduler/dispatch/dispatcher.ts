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
  countBacklog,
  markDispatched,
  predictJobOf,
  readBacklog,
  readCalledOff,
  readDispatched,
  readHeads,
  readInFlight,
} from "#rollouts/dispatch.ts";
import { withdraw } from "#rollouts/withdraw.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { predictQueue } from "#queue/queues.ts";

import { type Loop, startLoop } from "#platform/loop.ts";
import type { SchedulerMetrics } from "../metrics.ts";
import { type FairState, firstInLine, queuesOf, replayed, served } from "./fair.ts";
import { chooseNext, estimateHeld, roomFor } from "./policy.ts";

/** In case a signal was lost. */
const DISPATCH_EVERY_MS = 1_000;
/** A queue that is away keeps its callers waiting; what was committed and not added is the sweep's by then. */
const QUEUE_TIMEOUT_MS = 5_000;
const LANES = ["realtime", "bulk"] as const satisfies readonly Lane[];
/** Samples of a lane dispatched in one go; where there is room for more, the next round follows at once. */
const ROUND_SAMPLES_MAX = 200;
/** Of each customer in line at least so many are read, lest small rollouts among large ones need a round for each. */
const READ_EACH_MIN = 8;
/** The backlog is counted so far, to show whether there is any. */
const BACKLOG_COUNTED_MAX = 1_000;
/** From so many ends of late a new leader tells who was given what: minutes of a busy fleet. */
const REPLAYED_ENDS = 1_000;

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
  const lanes: Loop[] = [];
  const wake = (): void => lanes.forEach((loop) => loop.wake());
  // First, because what runs already would go on where this fails.
  const unsubscribe = await options.queues.signals.subscribe(["queued", "finished"], wake);
  lanes.push(...LANES.map((lane) => startLane(lane, options)));
  return {
    async stop() {
      await Promise.all(lanes.map((loop) => loop.stop()));
      await unsubscribe();
    },
  };
}

/**
 * One lane of all models. Each lane has a loop of its own, and shares no state with the other, so that a look at thousands of
 * bulk customers holds up nobody who waits. The models take turns in it, because a customer's scored rollouts are limited
 * over all of them.
 */
function startLane(lane: Lane, options: DispatcherOptions): Loop {
  const { models, log } = options;
  /** By model, what customers were given since this leader leads. */
  const given = new Map<string, FairState>();
  const loop = startLoop({
    name: `dispatch ${lane}`,
    everyMs: DISPATCH_EVERY_MS,
    log,
    run: async (signal) => {
      let more = false;
      try {
        for (const model of models) more = (await dispatchLane(model, lane, given, options, signal)) || more;
      } catch (error) {
        given.clear(); // what was committed before it failed only the database knows
        throw error;
      }
      if (more) loop.wake();
    },
  });
  return loop;
}

/**
 * Fills one queue of a model up to its target. Each lane has a target of its own: what nobody waits for takes no place from
 * the rest. True where there is room for rollouts that this round did not read.
 */
async function dispatchLane(
  manifest: Manifest,
  lane: Lane,
  given: Map<string, FairState>,
  options: DispatcherOptions,
  signal: AbortSignal,
): Promise<boolean> {
  const { db, queues, epoch, metrics } = options;
  const model = manifest.slug;
  const backlog = await countBacklog(db, model, lane, BACKLOG_COUNTED_MAX);
  metrics.backlog.set({ model, lane }, backlog);
  if (backlog === 0) return false;

  const inFlight = await readInFlight(db, model);
  const held = await heldByWorkers(manifest, inFlight, options);
  const room = roomFor({ held, in_flight: inFlight[lane].samples });
  const { state, chosen, more } = await nextOfLane(model, lane, room, given, options);
  if (chosen.length === 0 || signal.aborted) return false;

  const dispatched = await markDispatched(
    db,
    epoch,
    chosen.map(({ id }) => id),
  );
  for (const rollout of dispatched) {
    const queue = predictQueue(queues, model, lane);
    const added = queue.add(jobIdOf(rollout.id, rollout.attempt), predictJobOf(rollout));
    await within(QUEUE_TIMEOUT_MS, "add predict job", added);
    metrics.dispatched.inc({ model, lane });
  }
  // Whoever called one off between the commit and the add found no job to remove.
  const ids = dispatched.map(({ id }) => id);
  const calledOff = await readCalledOff(db, ids);
  for (const rollout of calledOff) await withdraw(options, rollout);

  const givenUp = new Set(calledOff.map(({ id }) => id));
  const went = new Set(ids.filter((id) => !givenUp.has(id)));
  given.set(
    model,
    served(
      state,
      chosen.filter(({ id }) => went.has(id)),
    ),
  );
  return dispatched.length > 0 && more;
}

/** Reads of the backlog no more than what may go next, and says what goes. Scored rollouts are in the bulk lane. */
async function nextOfLane(
  model: string,
  lane: Lane,
  room: number,
  given: Map<string, FairState>,
  { db, clock, scoredAtOnceMax }: DispatcherOptions,
) {
  const state = given.get(model) ?? replayed(await readDispatched(db, model, lane, REPLAYED_ENDS));
  given.set(model, state);
  if (room === 0) return { state, chosen: [], more: false };

  const line = { model, lane, now: new Date(clock.now()), scoredAtOnceMax };
  const heads = await readHeads(db, line);
  const take = Math.min(room, ROUND_SAMPLES_MAX);
  const customers = firstInLine(state, heads, take);
  const each = Math.max(READ_EACH_MIN, Math.ceil(take / Math.max(1, customers.length)));
  const queues = queuesOf(await readBacklog(db, { ...line, customers, each }), each);
  const { chosen, more } = chooseNext(state, queues, take);
  return { state, chosen, more: more || (take < room && chosen.length > 0) };
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
