/**
 * Runs datasets: takes the ones that have waited longest, works on several at once, a turn each. Any number of runners may
 * do so beside each other. A signal wakes it when there may be something to do; it looks each second all the same.
 */
import { bundleIdentity } from "#inputs/fingerprint.ts";
import type { BlobStore } from "#blobs/blob-store.ts";
import type { CustomerId, DatasetId, RandomBytes } from "#contract/ids.ts";
import type { Manifest } from "#contract/manifest.ts";
import { FETCH_RETRY_DELAYS_MS } from "#datasets/fetch-input.ts";
import { resumePayable } from "#datasets/pause.ts";
import { takeTurn } from "#datasets/turn.ts";
import { createFrameNormaliser } from "#inputs/frame.ts";
import { moneyMetricsOf } from "#ledger/metrics.ts";
import type { Clock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";
import { startLoop } from "#platform/loop.ts";
import type { Outbound } from "#platform/outbound.ts";
import type { BacklogLimits } from "#rollouts/backlog-limits.ts";
import { createSlots } from "#platform/slots.ts";
import { createWorkDir } from "#platform/work-dir.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import type { Registry } from "prom-client";

import { createRunnerMetrics, showDatasets } from "./metrics.ts";
import { IDLE_PAUSE_MS, type TurnParts, workOn } from "./turn.ts";

export interface RunnerOptions {
  readonly db: Database;
  readonly queues: QueueSystem;
  readonly blobs: BlobStore;
  readonly models: readonly Manifest[];
  readonly outbound: Outbound;
  /** Of what may wait; rows of datasets keep to a share of them. */
  readonly backlog: BacklogLimits;
  readonly clock: Clock;
  readonly random: RandomBytes;
  readonly log: Log;
  readonly registry: Registry;
  /** How long a dataset is nobody else's after its runner was last heard of. */
  readonly leaseMs?: number;
  /** Between tries to fetch an input. */
  readonly retryDelaysMs?: readonly number[];
}

/** In case a signal was lost. */
const LOOK_EVERY_MS = 1_000;
const LEASE_MS = 15_000;
/** Most of a turn is waiting for URLs and the database; a hanging server holds one of these for two minutes at most. */
const DATASETS_AT_ONCE = 16;
/** One customer with many slow datasets must leave room for the others. */
const DATASETS_OF_ONE_CUSTOMER_AT_ONCE = 4;
/** Signals come with every rollout that finishes; a dataset that was looked at in vain is free again by then. */
const WAKE_AFTER_MS = IDLE_PAUSE_MS + 50;
/** Of up to BODY_BYTES_MAX each. */
const LARGE_INPUTS_AT_ONCE = 16;
const SHOW_EVERY_MS = 15_000;

export async function startRunner(options: RunnerOptions): Promise<Service> {
  const { db, queues, log, registry, random } = options;
  const metrics = createRunnerMetrics(registry);
  const workDir = await createWorkDir("results");
  const parts: TurnParts = {
    ...options,
    workDir: workDir.path,
    normaliseFrame: createFrameNormaliser(),
    models: new Map(
      options.models.map((manifest) => [manifest.slug, { manifest, identity: bundleIdentity(manifest) }]),
    ),
    metrics,
    money: moneyMetricsOf(registry),
    large: createSlots(LARGE_INPUTS_AT_ONCE),
    leaseMs: options.leaseMs ?? LEASE_MS,
    retryDelaysMs: options.retryDelaysMs ?? FETCH_RETRY_DELAYS_MS,
  };
  const stopped = new AbortController();
  /** Turns under way, by their names. */
  const inHand = new Map<string, { readonly customer: CustomerId; readonly over: Promise<void> }>();

  async function takeUp(): Promise<boolean> {
    const name = `turn_${Buffer.from(random(12)).toString("hex")}`;
    const customers = [...inHand.values()].map(({ customer }) => customer);
    const without = customers.filter(
      (customer) => customers.filter((other) => other === customer).length >= DATASETS_OF_ONE_CUSTOMER_AT_ONCE,
    );
    const dataset = await takeTurn(db, { name, leaseMs: parts.leaseMs, without });
    if (!dataset) return false;
    inHand.set(name, { customer: dataset.customer_id, over: takeTurnOf(dataset.id, name) });
    return true;
  }

  async function takeTurnOf(dataset_id: DatasetId, name: string): Promise<void> {
    const didAny = await workOn({ dataset_id, name }, parts, stopped.signal);
    inHand.delete(name);
    if (didAny) loop.wake();
  }

  const loop = startLoop({
    name: "datasets",
    everyMs: LOOK_EVERY_MS,
    log,
    run: async (signal) => {
      for (const id of await resumePayable(db)) log.info({ dataset_id: id }, "a dataset goes on: credits have come");
      while (!signal.aborted && inHand.size < DATASETS_AT_ONCE && (await takeUp()));
    },
  });
  const show = startLoop({ name: "show datasets", everyMs: SHOW_EVERY_MS, log, run: () => showDatasets(db, metrics) });

  let wakeTimer: NodeJS.Timeout | undefined;
  const unsubscribe = await queues.signals.subscribe(["dataset", "finished"], () => {
    wakeTimer ??= setTimeout(() => {
      wakeTimer = undefined;
      if (!stopped.signal.aborted) loop.wake();
    }, WAKE_AFTER_MS);
  });

  async function stop(): Promise<void> {
    stopped.abort();
    clearTimeout(wakeTimer);
    await Promise.all([unsubscribe(), loop.stop(), show.stop()]);
    await Promise.all([...inHand.values()].map(({ over }) => over));
    await workDir.stop();
  }
  let stopping: Promise<void> | undefined;
  return { stop: () => (stopping ??= stop()) };
}
