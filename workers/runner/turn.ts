/**
 * One turn of work on one dataset: collect what has finished, then put rows back for a retry, or feed the next slice, or
 * call off, or finish; again, as long as that does something and the turn is short. Every step can be the last one that a process gets to do.
 */
import { collectFinished, type CollectParts, type Stuck } from "#datasets/collect.ts";
import { callOffSome } from "#datasets/call-off.ts";
import type { Dataset } from "#datasets/dataset.ts";
import { feedSlice, nextSlice } from "#datasets/feed.ts";
import { finishDataset, isOver } from "#datasets/finish.ts";
import { pauseDataset } from "#datasets/pause.ts";
import { type Prepared, type PrepareParts, prepareRows, type RunModel } from "#datasets/prepare.ts";
import { putSomeBack } from "#datasets/retry.ts";
import { endTurn, lockMine, readMine, renewTurn, type Turn } from "#datasets/turn.ts";
import type { MoneyMetrics } from "#ledger/metrics.ts";
import type { BacklogLimits } from "#rollouts/backlog-limits.ts";
import { settlesWithin } from "#platform/bounded.ts";
import type { QueueSystem } from "#queue/job-queue.ts";

import type { RunnerMetrics } from "./metrics.ts";

/** After this the next dataset has its turn; a step that is under way is finished. */
const TURN_MS = 1_000;
/** Rows that finish while inputs are fetched are collected this often. */
const COLLECT_EVERY_MS = 1_000;
/** Renewed three times in the time of a lease. */
const RENEWALS_PER_LEASE = 3;
/** Where there was nothing to do. */
export const IDLE_PAUSE_MS = 200;
/** After an error: what is away is not back at once. */
const ERROR_PAUSE_MS = 2_000;
/** Rows that one line of the log names. */
const STUCK_NAMED_MAX = 10;

export interface TurnParts extends CollectParts, PrepareParts {
  readonly queues: QueueSystem;
  /** Of this process alone. */
  readonly workDir: string;
  readonly models: ReadonlyMap<string, RunModel>;
  readonly metrics: RunnerMetrics;
  readonly money: MoneyMetrics;
  readonly leaseMs: number;
  readonly backlog: BacklogLimits;
}

/** Whether anything was done. Never rejects: an error is logged, and the next turn tries again. */
export async function workOn(turn: Turn, parts: TurnParts, stopped: AbortSignal): Promise<boolean> {
  const { db, clock, log, leaseMs } = parts;
  const lost = new AbortController();
  const signal = AbortSignal.any([stopped, lost.signal]);
  const renewals = setInterval(() => {
    renewTurn(db, turn, leaseMs).then(
      (mine) => {
        if (!mine) lost.abort();
      },
      // A lease that ends is noticed by the next transaction.
      (error: unknown) =>
        log.warn({ err: error, dataset_id: turn.dataset_id }, "could not renew the lease of a dataset"),
    );
  }, leaseMs / RENEWALS_PER_LEASE);

  const stuck: Stuck = new Map();
  let didAny = false;
  let pauseMs = IDLE_PAUSE_MS;
  try {
    const until = clock.now() + TURN_MS;
    while (!signal.aborted && clock.now() < until && (await round(turn, parts, stuck, signal))) didAny = true;
    if (didAny) pauseMs = 0;
  } catch (error) {
    pauseMs = ERROR_PAUSE_MS;
    if (!signal.aborted) log.error({ err: error, dataset_id: turn.dataset_id }, "a turn of a dataset failed");
  }
  const [first] = stuck.values();
  if (first !== undefined) {
    pauseMs = ERROR_PAUSE_MS;
    const rows = [...stuck.keys()].slice(0, STUCK_NAMED_MAX);
    log.error({ err: first, dataset_id: turn.dataset_id, stuck: stuck.size, rows }, "videos of rows cannot be copied");
  }
  clearInterval(renewals);
  await endTurn(db, turn, pauseMs).catch((error: unknown) => {
    log.warn({ err: error, dataset_id: turn.dataset_id }, "could not give a dataset back; its lease ends by itself");
  });
  return didAny && pauseMs === 0;
}

/** Whether it did something, so that the next round may, too. */
async function round(turn: Turn, parts: TurnParts, stuck: Stuck, signal: AbortSignal): Promise<boolean> {
  const collected = await collect(turn, parts, stuck);
  const dataset = await readMine(parts.db, turn);
  if (collected === null || !dataset || signal.aborted) return false;
  // Also while it is paused, and before anything is fed: that may take its time.
  if (dataset.retry_after !== null) {
    return (await timed(parts, "retry", () => putSomeBack(turn, parts.db))) === true;
  }
  if (isOver(dataset)) {
    return await timed(parts, "finish", () => finishDataset(turn, parts, signal));
  }
  if (dataset.state === "cancelling") {
    const refunded = (amount: Parameters<MoneyMetrics["moved"]>[1]): void => parts.money.moved("refund", amount);
    const ended = await callOffSome(turn, { ...parts, refunded }, signal);
    return ended !== null && ended + collected > 0;
  }
  if (dataset.state !== "running") return collected > 0;
  const fed = await feedNext(turn, dataset, parts, stuck, signal);
  return fed + collected > 0;
}

/** How many rows ended, or got stuck just now; null when the turn is another one's. */
async function collect(turn: Turn, parts: TurnParts, stuck: Stuck): Promise<number | null> {
  const stuckBefore = stuck.size;
  const collected = await timed(parts, "collect", () => collectFinished(turn, parts, stuck));
  if (!collected) return null;
  for (const outcome of collected.states) parts.metrics.rows.inc({ outcome });
  parts.metrics.videosLost.inc(collected.videosLost);
  for (const { refunded_mils } of collected.takenBack) parts.money.moved("refund", refunded_mils);
  return collected.states.length + stuck.size - stuckBefore;
}

/** How many rows were taken up, or failed before they could be. */
async function feedNext(
  turn: Turn,
  dataset: Dataset,
  parts: TurnParts,
  stuck: Stuck,
  signal: AbortSignal,
): Promise<number> {
  const { db, clock, queues, metrics, money, log } = parts;
  // Before the model is asked for: the last rows of a dataset end without it.
  if (dataset.rows_pending === 0) return 0;
  const model = parts.models.get(dataset.model);
  if (!model) {
    await pauseForModel(turn, parts);
    return 0;
  }
  const rows = await nextSlice(db, dataset, parts.backlog, clock.now());
  if (rows.length === 0) return 0;
  const slice = await timed(parts, "prepare", () =>
    collectingMeanwhile(turn, parts, stuck, signal, (end) => prepareRows(dataset, rows, model, parts, end)),
  );
  if (signal.aborted || slice.length === 0) return 0;
  const fed = await timed(parts, "feed", () => feedSlice(db, turn, slice));
  if (!fed) return 0;
  metrics.fed.inc(fed.accepted.length);
  metrics.rows.inc({ outcome: "refused" }, fed.failed);
  for (const { charge_mils } of fed.accepted) money.moved("debit", charge_mils);
  if (fed.accepted.length > 0) await queues.signals.publish({ kind: "queued" });
  if (fed.pause) log.info({ dataset_id: dataset.id, ...fed.pause }, "a dataset paused");
  return fed.accepted.length + fed.failed;
}

/** Inputs may take their time to come; rows that finish meanwhile do not wait for them. */
async function collectingMeanwhile(
  turn: Turn,
  parts: TurnParts,
  stuck: Stuck,
  signal: AbortSignal,
  prepare: (end: AbortSignal) => Promise<Prepared[]>,
): Promise<Prepared[]> {
  const ended = new AbortController();
  const preparing = prepare(AbortSignal.any([signal, ended.signal]));
  try {
    while (!(await settlesWithin(COLLECT_EVERY_MS, preparing))) {
      await collect(turn, parts, stuck);
      const dataset = await readMine(parts.db, turn);
      // Paused, cancelled, or another one's: nothing of the slice will be paid for.
      if (dataset?.state !== "running") ended.abort();
    }
  } catch (error) {
    ended.abort();
    await preparing.catch(() => undefined); // it is what threw, or it ends because of what did
    throw error;
  }
  return await preparing;
}

async function pauseForModel(turn: Turn, { db, models }: TurnParts): Promise<void> {
  await db.transaction(async (tx) => {
    const dataset = await lockMine(tx, turn);
    if (dataset?.state !== "running") return;
    const known = [...models.keys()].join(", ");
    const message = `this server does not have the model ${dataset.model} any more (it has ${known}): resume it when it is back`;
    await pauseDataset(tx, dataset, { reason: "model_unavailable", message });
  });
}

async function timed<T>({ metrics }: TurnParts, step: string, run: () => Promise<T>): Promise<T> {
  const end = metrics.steps.startTimer({ step });
  try {
    return await run();
  } finally {
    end();
  }
}
