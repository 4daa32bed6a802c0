/**
 * The one scheduler that acts. Any number of processes run this; whoever holds the advisory lock leads, the others
 * wait and take over. Each leader has an epoch that its dispatches and its looks at dispatched rollouts name, because a
 * lock alone does not stop a leader that lost it without noticing. Ending a rollout whose time or client is gone needs no
 * epoch (the first end counts, whoever brings it), nor does deleting what is old.
 */
import type { Registry } from "prom-client";

import type { Stripe } from "#billing/stripe.ts";
import type { BlobStore } from "#blobs/blob-store.ts";
import type { Manifest } from "#contract/manifest.ts";
import type { Clock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import { type Service, stopAll } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { type Leadership, tryLead } from "#rollouts/leader.ts";

import { startAudit } from "./audit.ts";
import { startDispatcher } from "./dispatch/dispatcher.ts";
import { createEconomicsMetrics, startEconomicsWatch } from "./economics-watch.ts";
import { startLoop } from "#platform/loop.ts";
import { createSchedulerMetrics } from "./metrics.ts";
import { createPoolMetrics } from "./scaling/metrics.ts";
import { type ScalingSetup, startScaler } from "./scaling/scaler.ts";
import { startMoneyWatch } from "./money-watch.ts";
import { startReconciler } from "./reconciler.ts";
import { startJanitor } from "./sweep/janitor.ts";
import { startSweeper } from "./sweep/sweeper.ts";
import { startWebhookSweep } from "./sweep/webhooks.ts";

/** How soon a standby notices that the leader is gone. */
const TAKE_OVER_EVERY_MS = 500;

export interface SchedulerOptions {
  readonly db: Database;
  readonly queues: QueueSystem;
  readonly blobs: BlobStore;
  readonly models: readonly Manifest[];
  /** How this process sees to the workers; the fleet goes on when another process leads. */
  readonly scaling: ScalingSetup;
  /** Scored rollouts that a customer may have dispatched at once, of all models together. */
  readonly scoredAtOnceMax: number;
  /** Rent of a worker's accelerator. */
  readonly gpuUsdPerHour: number;
  /** How long inputs and videos are kept after the end of their rollout, and uploads after they came. */
  readonly retentionMs: number;
  /** How long a dataset may wait for its owner. */
  readonly datasetIdleMs: number;
  /** Names this process to people who ask who leads. */
  readonly holder: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly registry: Registry;
  /** Null or absent where top-up by card is not configured. */
  readonly stripe?: Stripe | null;
}

/** Resolves at once; leads as soon as nobody else does. */
export async function startScheduler(options: SchedulerOptions): Promise<Service & { isLeader(): boolean }> {
  const { db, log, holder } = options;
  const metrics = createSchedulerMetrics(options.registry);
  const economics = createEconomicsMetrics(options.registry);
  const pools = createPoolMetrics(options.registry);
  let leadership: Leadership | null = null;

  const candidacy = startLoop({
    name: "leadership",
    everyMs: TAKE_OVER_EVERY_MS,
    log,
    run: async (signal) => {
      leadership = await tryLead(db, holder);
      if (!leadership) return;
      const { epoch, endedOfFrozen } = leadership;
      if (endedOfFrozen > 0)
        log.warn({ connections: endedOfFrozen }, "the leader before did not answer: ended its connections");
      log.info({ epoch: String(epoch) }, "leading");
      metrics.leader.set(1);
      const parts: [string, Service][] = [];
      try {
        parts.push(["sweep", startSweeper({ ...options, epoch, metrics })]);
        parts.push(["clean", startJanitor({ ...options, epoch })]);
        parts.push(["webhooks", startWebhookSweep({ ...options, epoch, metrics })]);
        parts.push(["money watch", startMoneyWatch({ ...options, metrics })]);
        parts.push(["audit", startAudit(options)]);
        parts.push(["economics", startEconomicsWatch({ ...options, epoch, metrics: economics })]);
        if (options.stripe) parts.push(["reconcile", startReconciler({ ...options, stripe: options.stripe, metrics })]);
        const scaler = await startScaler({ ...options, epoch, metrics: pools });
        parts.push(["scaling", scaler]);
        const { liveWorkers } = scaler;
        parts.push(["dispatch", await startDispatcher({ ...options, liveWorkers, epoch, metrics })]);
        const reason = await Promise.race([leadership.lost, untilAborted(signal)]);
        if (reason) log.error({ err: reason }, "lost the leadership");
      } finally {
        metrics.leader.set(0);
        await stopAll(parts, log);
        await leadership.resign();
        leadership = null;
      }
    },
  });
  return { isLeader: () => leadership !== null, stop: () => candidacy.stop() };
}

function untilAborted(signal: AbortSignal): Promise<null> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve(null);
    else signal.addEventListener("abort", () => resolve(null), { once: true });
  });
}
