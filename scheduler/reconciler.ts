/** The leader compares our payments with Stripe's, so that a lost webhook costs a customer minutes and not a ticket. */
import { reconcile } from "#billing/reconcile.ts";
import { describeStripeError, type Stripe } from "#billing/stripe.ts";
import type { Clock } from "#platform/clock.ts";
import { settlesWithin } from "#platform/bounded.ts";
import type { Database } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";

import { startLoop } from "./loop.ts";
import type { SchedulerMetrics } from "./metrics.ts";

const RECONCILE_EVERY_MS = 15 * 60_000;
/** Stripe itself tries a webhook for three days; `billing reconcile` looks further back. */
const DAYS = 3;
const STOP_WITHIN_MS = 2_000;

export interface ReconcilerOptions {
  readonly db: Database;
  readonly stripe: Stripe;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: SchedulerMetrics;
}

export function startReconciler({ db, stripe, clock, log, metrics }: ReconcilerOptions): Service {
  const loop = startLoop({
    name: "reconcile",
    everyMs: RECONCILE_EVERY_MS,
    log,
    run: async (signal) => {
      const report = await reconcile(
        { db, stripe, clock, log, moved: (...m) => metrics.money.moved(...m), signal },
        { days: DAYS },
      ).catch((error: unknown) => {
        throw describeStripeError(error);
      });
      metrics.books.reconciledAt.set(clock.now() / 1000);
      for (const { kind, id, message } of report.disagreements) {
        log.error({ kind, id }, `Stripe and our books disagree: ${message}`);
      }
      log.info({ ...report.looked_at, repaired: report.repaired.length }, "compared with Stripe");
    },
  });
  return {
    // A round that waits for Stripe may end after us: whatever it still does is done as a webhook would.
    stop: async () => void (await settlesWithin(STOP_WITHIN_MS, loop.stop())),
  };
}
