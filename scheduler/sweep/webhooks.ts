/** Webhooks, for the leader: old ones are deleted, and how many wait, and how long, is shown to whoever watches. */
import type { Clock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";
import { startLoop } from "#platform/loop.ts";
import { deleteOldDeliveries, deleteOldEndpoints, readBacklog } from "#webhooks/retention.ts";

import type { SchedulerMetrics } from "../metrics.ts";

/** The log is for finding out why a message did not arrive, not for keeping. */
export const DELIVERIES_KEPT_MS = 30 * 24 * 3_600_000;
const DELIVERIES_PER_ROUND_MAX = 2_000;

const LOOK_EVERY_MS = 15_000;

export interface WebhookSweepParts {
  readonly db: Database;
  readonly epoch: bigint;
  readonly clock: Clock;
  readonly metrics: Pick<SchedulerMetrics, "webhooks">;
  readonly log: Log;
}

export function startWebhookSweep(parts: WebhookSweepParts): Service {
  const { webhooks } = parts.metrics;
  const loop = startLoop({
    name: "webhooks",
    everyMs: LOOK_EVERY_MS,
    log: parts.log,
    run: async () => void (await sweepWebhooks(parts)),
  });
  return {
    async stop() {
      await loop.stop();
      // Somebody else leads, and shows what there is.
      webhooks.pending.set(0);
      webhooks.oldestDueS.set(0);
    },
  };
}

/** One round; how many deliveries it deleted. */
export async function sweepWebhooks({
  db,
  epoch,
  clock,
  metrics: { webhooks },
}: Omit<WebhookSweepParts, "log">): Promise<number> {
  const backlog = await readBacklog(db);
  webhooks.pending.set(backlog.pending);
  webhooks.oldestDueS.set(backlog.oldest_due_s);
  const before = new Date(clock.now() - DELIVERIES_KEPT_MS);
  const deleted = await deleteOldDeliveries(db, epoch, before, DELIVERIES_PER_ROUND_MAX);
  await deleteOldEndpoints(db, epoch, before);
  return deleted;
}
