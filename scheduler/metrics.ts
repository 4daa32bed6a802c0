/** What the scheduler counts. */
import { Counter, Gauge, type Registry } from "prom-client";

export type SchedulerMetrics = ReturnType<typeof createSchedulerMetrics>;

export function createSchedulerMetrics(registry: Registry) {
  const registers = [registry];
  return {
    leader: new Gauge({ name: "dream_scheduler_leader", help: "1 while this process leads", registers }),
    backlog: new Gauge({
      name: "dream_scheduler_backlog_rollouts",
      help: "Rollouts waiting for dispatch, as far as one round reads",
      labelNames: ["model"] as const,
      registers,
    }),
    dispatched: new Counter({
      name: "dream_scheduler_dispatched_total",
      help: "Rollouts given to a queue",
      labelNames: ["model"] as const,
      registers,
    }),
    swept: new Counter({
      name: "dream_scheduler_swept_total",
      help: "What the sweep did to rollouts that were stuck, by action",
      labelNames: ["action"] as const,
      registers,
    }),
  };
}
