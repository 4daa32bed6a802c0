/**
 * Ends what got stuck. Always on, also when no worker lives; every look at a dispatched rollout happens under its row
 * lock, so that a settlement cannot come in between looking and deciding.
 */
import { Compile } from "typebox/compile";

import { jobIdOf, type RolloutId } from "#contract/ids.ts";
import { blobKeys, type Outcome, RolloutResult } from "#contract/jobs.ts";
import { type Mils, mils } from "#contract/mils.ts";
import { BlobNotFound, type BlobStore } from "#blobs/blob-store.ts";
import { within } from "#platform/bounded.ts";
import type { Clock } from "#platform/clock.ts";
import type { Database, Sql } from "#platform/database.ts";
import type { Log } from "#platform/log.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { predictJobs, predictQueue, settlementQueue } from "#queue/queues.ts";
import { predictJobOf } from "#rollouts/dispatch.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import { settle } from "#rollouts/settle.ts";
import { withdraw } from "#rollouts/withdraw.ts";
import { readAbandoned } from "#rollouts/leases.ts";
import { nextOverdue, postpone, readExpired } from "#rollouts/sweep.ts";

import { type Loop, startLoop } from "#platform/loop.ts";
import type { SchedulerMetrics } from "../metrics.ts";
import { createLeaseTrust } from "./lease-trust.ts";
import { type Action, decide, type Facts, isInHand, lookAgainAt } from "./policy.ts";

const SWEEP_EVERY_MS = 1_000;
/** Rows of each kind in one round; the rest comes in the next. */
const ROWS_PER_ROUND_MAX = 100;
/** Bound on each look at the queue or the blob store: a row is locked meanwhile. */
const LOOK_TIMEOUT_MS = 5_000;
/** A gateway renews its lease every few seconds; one that has not for this long is dead, and so are its clients. */
const GATEWAY_LEASE_MS = 15_000;

const rolloutResult = Compile(RolloutResult);

export interface SweeperOptions {
  readonly db: Database;
  readonly queues: QueueSystem;
  readonly blobs: BlobStore;
  readonly epoch: bigint;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: SchedulerMetrics;
}

export function startSweeper(options: SweeperOptions): Loop {
  const { clock } = options;
  const leases = createLeaseTrust(GATEWAY_LEASE_MS, clock.now());
  return startLoop({
    name: "sweep",
    everyMs: SWEEP_EVERY_MS,
    log: options.log,
    run: async (signal) => {
      await endExpired(options, signal);
      if (leases.isSteady(clock.now())) await endAbandoned(options, signal);
      for (let looked = 0; looked < ROWS_PER_ROUND_MAX && !signal.aborted; looked++) {
        if (!(await lookAtNext(options))) break;
      }
      leases.roundEnded(clock.now());
    },
  });
}

/** Nobody came to run them in time. */
async function endExpired(options: SweeperOptions, signal: AbortSignal): Promise<void> {
  const { db, clock } = options;
  for (const id of await readExpired(db, new Date(clock.now()), ROWS_PER_ROUND_MAX)) {
    if (signal.aborted) return;
    await end(options, id, { kind: "expired" }, "expired");
  }
}

/** Their client waited at a gateway that is gone. */
async function endAbandoned(options: SweeperOptions, signal: AbortSignal): Promise<void> {
  for (const id of await readAbandoned(options.db, GATEWAY_LEASE_MS, ROWS_PER_ROUND_MAX)) {
    if (signal.aborted) return;
    await end(options, id, { kind: "cancelled", frames_delivered: 0 }, "abandoned");
  }
}

async function end(options: SweeperOptions, id: RolloutId, outcome: Outcome, why: string): Promise<void> {
  const { settled, rollout } = await settle(options.db, id, null, outcome);
  if (!settled || !rollout) return;
  options.metrics.money.moved("refund", rollout.refunded_mils);
  await announce(options, rollout, outcome, { why, cancel: true });
}

/**
 * Looks at the dispatched rollout that is most overdue; false when there is none, or when the look failed: where the
 * queue is away, every further look of this round would wait for it as long, and deadlines and stop() behind them.
 */
async function lookAtNext(options: SweeperOptions): Promise<boolean> {
  const { db, epoch, clock } = options;
  const looked = await db.transaction(async (tx) => {
    const rollout = await nextOverdue(tx, epoch, new Date(clock.now()));
    if (!rollout) return null;
    const action = await lookAt(rollout, options);
    // Put off like any other, or this row would keep those behind it from their looks.
    const refunded = await act(tx, rollout, action ?? { kind: "wait" }, options);
    return { rollout, action, refunded };
  });
  if (!looked?.action) return false;
  const { rollout, action, refunded } = looked;
  options.metrics.swept.inc({ action: action.kind });
  options.metrics.money.moved("refund", refunded);
  if (action.kind === "settle") {
    await announce(options, rollout, action.outcome, { why: "stuck", cancel: action.cancel });
  }
  return true;
}

/** Null when the look failed. */
async function lookAt(rollout: Rollout, options: SweeperOptions): Promise<Action | null> {
  try {
    return decide(await gatherFacts(rollout, options));
  } catch (error) {
    options.log.error({ err: error, rollout_id: rollout.id }, "could not look at a rollout; trying again later");
    return null;
  }
}

/** In the order that the policy relies on: predict job, settlement job, result. */
async function gatherFacts(rollout: Rollout, { queues, blobs, clock, log }: SweeperOptions): Promise<Facts> {
  const jobId = jobIdOf(rollout.id, rollout.attempt);
  const found = predictJobs(queues, rollout.model).find(jobId, rollout.lane);
  const predictJob = await within(LOOK_TIMEOUT_MS, "find predict job", found);
  const predict = predictJob?.state ?? null;
  const start_by_ms = predictJob?.data?.alone ? null : (rollout.start_by?.getTime() ?? null); // alone: it has run before
  const timing = { now_ms: clock.now(), deadline_ms: rollout.deadline_at.getTime(), start_by_ms };
  if (isInHand({ predict, ...timing })) return { predict, ...timing, settlement: null, result: null };

  const job = await within(LOOK_TIMEOUT_MS, "find settlement job", settlementQueue(queues).find(jobId));
  const settlement = job?.data ? { state: job.state, outcome: job.data.outcome } : null;
  const result = await within(LOOK_TIMEOUT_MS, "read result", readResult(blobs, rollout, log));
  return { predict, ...timing, settlement, result };
}

async function readResult(blobs: BlobStore, { id, attempt }: Rollout, log: Log): Promise<RolloutResult | null> {
  const key = blobKeys.result(id, attempt);
  let text: string;
  try {
    text = (await blobs.get(key)).toString("utf8");
  } catch (error) {
    if (error instanceof BlobNotFound) return null;
    throw error;
  }
  try {
    return rolloutResult.Parse(JSON.parse(text));
  } catch (error) {
    // It will not get better: a look that failed over it each time would never end the rollout.
    log.error({ err: error, key }, "result.json is not valid; it counts as missing");
    return null;
  }
}

/** What was refunded by it. */
async function act(tx: Sql, rollout: Rollout, action: Action, { queues, clock, log }: SweeperOptions): Promise<Mils> {
  if (action.kind === "settle") {
    const { settled, rollout: ended } = await settle(tx, rollout.id, rollout.attempt, action.outcome);
    return settled && ended ? ended.refunded_mils : mils(0);
  }
  if (action.kind === "add_again") {
    const jobId = jobIdOf(rollout.id, rollout.attempt);
    log.warn({ rollout_id: rollout.id, attempt: rollout.attempt }, "its job is gone; adding it again");
    const added = predictQueue(queues, rollout.model, rollout.lane).add(jobId, predictJobOf(rollout));
    await within(LOOK_TIMEOUT_MS, "add predict job", added);
  }
  const { dispatched_at, created_at, deadline_at, start_by } = rollout;
  const dispatchedMs = (dispatched_at ?? created_at).getTime();
  const again = lookAgainAt(clock.now(), dispatchedMs, deadline_at.getTime(), start_by && start_by.getTime());
  await postpone(tx, rollout.id, new Date(again));
  return mils(0);
}

async function announce(
  options: SweeperOptions,
  rollout: Rollout,
  outcome: Outcome,
  { why, cancel }: { why: string; cancel: boolean },
): Promise<void> {
  const { queues, log } = options;
  log.warn({ rollout_id: rollout.id, outcome: outcome.kind, why }, "the sweep settled a rollout");
  if (cancel) await withdraw(options, rollout);
  await queues.signals.publish({ kind: "finished", rollout_id: rollout.id });
}
