/** The leader compares our payments with Stripe's, so that a lost webhook costs a customer minutes and not a ticket. */
import { reconcile } from "#billing/reconcile.ts";
import { countByKind, daysToCompare, lastReconciled, recordReconciled } from "#billing/reconciled.ts";
import { describeStripeError, type Stripe } from "#billing/stripe.ts";
import type { Clock } from "#platform/clock.ts";
import { settlesWithin } from "#platform/bounded.ts";
import type { Database } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";

import { startLoop } from "#platform/loop.ts";
import { type SchedulerMetrics, showDisagreements } from "./metrics.ts";

const RECONCILE_EVERY_MS = 15 * 60_000;
const STOP_WITHIN_MS = 2_000;

export interface ReconcilerOptions {
  readonly db: Database;
  readonly stripe: Stripe;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: SchedulerMetrics;
}

export function startReconciler({ db, stripe, clock, log, metrics }: ReconcilerOptions): Service {
  metrics.books.reconcileExpected.set(1);
  const loop = startLoop({
    name: "reconcile",
    everyMs: RECONCILE_EVERY_MS,
    log,
    run: async (signal) => {
      const at = new Date(clock.now());
      const days = daysToCompare(at.getTime(), await lastReconciled(db));
      const report = await reconcile(
        { db, stripe, clock, log, moved: (...m) => metrics.money.moved(...m), signal },
        { days },
      ).catch((error: unknown) => {
        throw describeStripeError(error);
      });
      const disagreements = countByKind(report.disagreements);
      await recordReconciled(db, { at, disagreements });
      if (!signal.aborted) {
        metrics.books.reconciledAt.set(at.getTime() / 1000);
        showDisagreements(metrics, disagreements);
      }
      for (const { kind, id, message } of report.disagreements) {
        log.error({ kind, id }, `Stripe and our books disagree: ${message}`);
      }
      log.info({ ...report.looked_at, repaired: report.repaired.length }, "compared with Stripe");
    },
  });
  return {
    // A round that waits for Stripe may end after us: whatever it still does is done as a webhook would.
    async stop() {
      metrics.books.reconcileExpected.set(0);
      await settlesWithin(STOP_WITHIN_MS, loop.stop());
    },
  };
}
