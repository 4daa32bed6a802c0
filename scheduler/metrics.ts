/** What the scheduler counts, and what the leader reads off the books for others to watch (money-watch.ts). */
import { Counter, Gauge, type Registry } from "prom-client";

import { DISAGREEMENT_KINDS } from "#billing/reconcile-run.ts";
import { moneyMetricsOf } from "#ledger/metrics.ts";

export type SchedulerMetrics = ReturnType<typeof createSchedulerMetrics>;

export function createSchedulerMetrics(registry: Registry) {
  const registers = [registry];
  return {
    leader: new Gauge({ name: "dream_scheduler_leader", help: "1 while this process leads", registers }),
    backlog: new Gauge({
      name: "dream_scheduler_backlog_rollouts",
      help: "Rollouts waiting for dispatch in a lane, counted up to 1,000",
      labelNames: ["model", "lane"] as const,
      registers,
    }),
    dispatched: new Counter({
      name: "dream_scheduler_dispatched_total",
      help: "Rollouts given to a queue, by model and lane",
      labelNames: ["model", "lane"] as const,
      registers,
    }),
    swept: new Counter({
      name: "dream_scheduler_swept_total",
      help: "What the sweep did to rollouts that were stuck, by action",
      labelNames: ["action"] as const,
      registers,
    }),
    webhooks: {
      pending: new Gauge({
        name: "dream_webhooks_pending",
        help: "Webhooks that are to be sent, now or as a retry; read by the leader",
        registers,
      }),
      oldestDueS: new Gauge({
        name: "dream_webhooks_oldest_due_age_seconds",
        help: "How long ago the oldest of them should have been sent; read by the leader",
        registers,
      }),
    },
    money: moneyMetricsOf(registry),
    books: createBooksMetrics(registry),
    disagreements: new Gauge({
      name: "dream_money_reconcile_disagreements",
      help: "What disagreed when our payments were last compared with Stripe's, by kind",
      labelNames: ["kind"] as const,
      registers,
    }),
  };
}

export function showDisagreements(
  { disagreements }: Pick<SchedulerMetrics, "disagreements">,
  counts: Readonly<Record<string, number | undefined>>,
): void {
  for (const kind of DISAGREEMENT_KINDS) disagreements.set({ kind }, counts[kind] ?? 0);
}

/** Read by the leader alone; 0 in processes that do not lead, so `max()` over all of them is the leader's word. */
function createBooksMetrics(registry: Registry) {
  const gauge = (name: string, help: string): Gauge => new Gauge({ name, help, registers: [registry] });
  return {
    unsettled: gauge("dream_money_unsettled_rollouts", "Rollouts that are debited and not settled"),
    oldestUnsettledS: gauge(
      "dream_money_oldest_unsettled_debit_age_seconds",
      "Age of the oldest debit whose rollout is not settled",
    ),
    mostOverdueS: gauge(
      "dream_money_unsettled_past_deadline_seconds",
      "How long ago the deadline of an unsettled rollout passed, at most; the sweep settles those within seconds",
    ),
    verifiedAt: gauge(
      "dream_ledger_verified_at_seconds",
      "When a verification of the ledger last found nothing, in epoch seconds",
    ),
    problems: gauge("dream_ledger_problems", "Disagreements that the last verification of the ledger found"),
    paymentProblems: gauge(
      "dream_money_payments_with_problem",
      "Payments that Stripe holds and that were not credited, for another currency or amount or an unknown top-up",
    ),
    reconciledAt: gauge(
      "dream_money_reconciled_at_seconds",
      "When our payments were last compared with Stripe's, in epoch seconds; 0 is never",
    ),
    reconcileExpected: gauge(
      "dream_money_reconcile_expected",
      "1 where the scheduler that leads has Stripe's key, and so has to compare",
    ),
    unreadEvents: gauge(
      "dream_money_unread_events",
      "Signed events of Stripe's about our money that could not be read, of the last 30 days",
    ),
    readAt: gauge("dream_ledger_read_at_seconds", "When the leader last read these figures, in epoch seconds"),
  };
}
