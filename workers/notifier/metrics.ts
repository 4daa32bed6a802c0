/** What a notifier counts. How much waits, and how long, the scheduler reads (scheduler/sweep/webhooks.ts). */
import { Counter, type Registry } from "prom-client";

export type NotifierMetrics = ReturnType<typeof createNotifierMetrics>;

export function createNotifierMetrics(registry: Registry) {
  const registers = [registry];
  return {
    attempts: new Counter({
      name: "dream_webhook_attempts_total",
      help: "Webhooks sent, by the class of what the receiver answered: 2xx to 5xx, or none",
      labelNames: ["answer"] as const,
      registers,
    }),
    deliveries: new Counter({
      name: "dream_webhook_deliveries_total",
      help: "Webhooks that need no more attempts, by outcome: delivered or failed",
      labelNames: ["outcome"] as const,
      registers,
    }),
  };
}
