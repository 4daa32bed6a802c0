/** The leader reads the books every few seconds, so that alerts need no access to the database. */
import { readBooks } from "#ledger/books.ts";
import type { Clock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";

import { startLoop } from "#platform/loop.ts";
import { type SchedulerMetrics, showDisagreements } from "./metrics.ts";

const READ_EVERY_MS = 10_000;

export function startMoneyWatch(options: {
  readonly db: Database;
  readonly metrics: SchedulerMetrics;
  readonly clock: Clock;
  readonly log: Log;
}): Service {
  const { db, clock, log } = options;
  const { metrics } = options;
  const { books: gauges } = metrics;
  const loop = startLoop({
    name: "money watch",
    everyMs: READ_EVERY_MS,
    log,
    run: async () => {
      const books = await readBooks(db);
      gauges.unsettled.set(books.unsettled);
      gauges.oldestUnsettledS.set(books.oldest_unsettled_s);
      gauges.mostOverdueS.set(books.most_overdue_s);
      gauges.verifiedAt.set(books.verified_at_s);
      gauges.problems.set(books.problems);
      gauges.paymentProblems.set(books.payments_with_problem);
      gauges.reconciledAt.set(books.reconciled_at_s);
      gauges.unreadEvents.set(books.unread_events);
      showDisagreements(metrics, books.disagreements);
      gauges.readAt.set(clock.now() / 1000);
    },
  });
  return {
    async stop() {
      await loop.stop();
      // Whoever leads next says what is true from now on; old figures here would contradict it.
      for (const gauge of Object.values(gauges)) gauge.set(0);
      showDisagreements(metrics, {});
    },
  };
}
