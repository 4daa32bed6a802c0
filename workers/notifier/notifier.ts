/**
 * Sends webhooks. Deliveries are taken from the table that the transactions behind them wrote (src/webhooks/outbox.ts),
 * a few at a time and shared out: no receiver, and no customer, holds more than its part of the exchanges at once. Any number
 * of notifiers work side by side; what one had in hand when it died goes on with another when its claim ends.
 */
import type { Registry } from "prom-client";

import type { BlobStore } from "#blobs/blob-store.ts";
import type { RandomBytes } from "#contract/ids.ts";
import type { Manifest } from "#contract/manifest.ts";
import { settlesWithin } from "#platform/bounded.ts";
import type { Clock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";
import { startLoop } from "#platform/loop.ts";
import type { Outbound } from "#platform/outbound.ts";
import { sharedSecret } from "#platform/shared-secret.ts";
import type { Signals } from "#queue/signals.ts";
import { createVideoLinks } from "#rollouts/video-links.ts";
import { type Claim, type Claimed, claimDue, type Route, type Shares } from "#webhooks/deliveries.ts";
import { webhookRoot } from "#webhooks/secrets.ts";

import { deliver, type DeliverParts } from "./deliver.ts";
import { createNotifierMetrics } from "./metrics.ts";

export interface NotifierBounds extends Shares {
  /** Of one exchange, a slow answer's last byte included. */
  readonly timeoutMs: number;
  /** A claim outlives the exchange and its notes by far; a notifier that is silent for longer is taken for dead. */
  readonly leaseMs: number;
  /** How long a stopping notifier lets exchanges come to their end. */
  readonly graceMs: number;
  /** Exchanges at once. */
  readonly concurrency: number;
}

export const NOTIFIER_BOUNDS: NotifierBounds = {
  timeoutMs: 15_000,
  leaseMs: 60_000,
  graceMs: 4_000,
  concurrency: 32,
  perRoute: 4,
  perReceiver: 8,
  perCustomer: 12,
};

/** Retries become due without a signal, and signals get lost. */
const LOOK_EVERY_MS = 1_000;

export interface NotifierOptions {
  readonly db: Database;
  readonly signals: Signals;
  /** Signs links to videos where it can. */
  readonly blobs: BlobStore;
  readonly models: readonly Manifest[];
  /** What links of the gateway begin with; null where nobody said it: webhooks are without links then. */
  readonly publicUrl: string | null;
  readonly retentionMs: number;
  readonly datasetIdleMs: number;
  readonly outbound: Outbound;
  readonly clock: Clock;
  readonly random: RandomBytes;
  readonly log: Log;
  readonly registry: Registry;
  readonly bounds?: NotifierBounds;
}

export async function startNotifier(options: NotifierOptions): Promise<Service> {
  const { db, random, signals, log, bounds = NOTIFIER_BOUNDS } = options;
  const shapes = new Map(options.models.map((model) => [model.slug, model.shapes]));
  const parts: DeliverParts = {
    ...options,
    root: await webhookRoot(db, random),
    videoLinks: createVideoLinks({ secret: await sharedSecret(db, "video_url", random), blobs: options.blobs }),
    shapesOf: (model) => shapes.get(model) ?? null,
    timeoutMs: bounds.timeoutMs,
    metrics: createNotifierMetrics(options.registry),
  };
  const stopping = new AbortController();
  const inHand = new Map<Promise<void>, Claimed>();

  const loop = startLoop({ name: "webhooks", everyMs: LOOK_EVERY_MS, run: takeDue, log });
  const unsubscribe = await signals.subscribe(["finished"], () => loop.wake());

  async function takeDue(signal: AbortSignal): Promise<void> {
    let after: Route | null = null;
    do {
      const count = bounds.concurrency - inHand.size;
      if (count <= 0) return; // whichever ends first looks again
      const claim: Claim = await claimDue(db, { ...bounds, count, inHand: [...inHand.values()], after });
      claim.deliveries.forEach(begin);
      after = claim.next;
    } while (after !== null && !signal.aborted);
  }

  function begin(claimed: Claimed): void {
    const work = deliver(claimed, parts, stopping.signal)
      // Its claim ends by itself, and it is tried again.
      .catch((error: unknown) => log.error({ err: error, delivery_id: claimed.id }, "could not send a webhook"))
      .finally(() => {
        inHand.delete(work);
        loop.wake();
      });
    inHand.set(work, claimed);
  }

  let stopped: Promise<void> | undefined;
  async function stop(): Promise<void> {
    await unsubscribe();
    await loop.stop();
    const ended = Promise.all(inHand.keys());
    if (await settlesWithin(bounds.graceMs, ended)) return;
    stopping.abort();
    await ended;
  }
  return { stop: () => (stopped ??= stop()) };
}
