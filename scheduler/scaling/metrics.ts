/** What the leader shows of the pools. A standby shows nothing: its gauges are emptied when its term ends. */
import { Counter, Gauge, type Registry } from "prom-client";

import type { PoolSeconds } from "#pools/hours.ts";
import type { Pool } from "#pools/pool.ts";

export interface PoolMetrics {
  looked(pool: Pool): void;
  passed(model: string, seconds: PoolSeconds): void;
  /** The term is over. */
  clear(): void;
}

export function createPoolMetrics(registry: Registry): PoolMetrics {
  const registers = [registry];
  const gauge = <Label extends string>(name: string, help: string, ...labels: readonly Label[]) =>
    new Gauge({ name, help, labelNames: ["model", ...labels] as const, registers });
  const counter = <Label extends string>(name: string, help: string, ...labels: readonly Label[]) =>
    new Counter({ name, help, labelNames: ["model", ...labels] as const, registers });

  const desired = gauge("dream_pool_desired_workers", "Ready and starting workers that the policy wants");
  const workers = gauge("dream_pool_workers", "Workers by what they do", "state");
  const reason = gauge("dream_pool_reason", "1 for the reason that holds for the size of the pool", "reason");
  const waiting = gauge("dream_pool_waiting_work_seconds", "What waits, in seconds of one warm worker");
  const crashLoop = gauge("dream_pool_crash_loop", "1 while workers of the pool keep dying");
  const coldStart = gauge("dream_pool_cold_start_seconds", "From a worker's start to ready, as estimated");
  const alwaysWarm = gauge("dream_pool_always_warm_workers", "Workers that an operator keeps whatever comes");
  const gauges = [desired, workers, reason, waiting, crashLoop, coldStart, alwaysWarm];

  const decisions = counter("dream_pool_decisions_total", "Decisions about the size of the pool, by reason", "reason");
  const coldStarts = counter("dream_pool_cold_starts_total", "Starts of workers that ended ready");
  const seconds = counter("dream_pool_worker_seconds_total", "Seconds of workers; busy is a part of ready", "state");

  /** The reason that is shown of each model. */
  const shown = new Map<string, string>();

  return {
    looked(pool) {
      const { model } = pool;
      desired.set({ model }, pool.desired);
      for (const state of ["ready", "starting", "draining"] as const) workers.set({ model, state }, pool[state]);
      const before = shown.get(model);
      if (before !== undefined) reason.remove({ model, reason: before });
      reason.set({ model, reason: pool.reason.kind }, 1);
      shown.set(model, pool.reason.kind);
      decisions.inc({ model, reason: pool.reason.kind });
      waiting.set({ model }, pool.waiting_work_s);
      crashLoop.set({ model }, pool.crash_loop === null ? 0 : 1);
      coldStart.set({ model }, pool.cold_start_s);
      alwaysWarm.set({ model }, pool.always_warm_workers ?? 0);
    },
    passed(model, { ready_s, busy_s, starting_s, draining_s, cold_starts }) {
      seconds.inc({ model, state: "ready" }, ready_s);
      seconds.inc({ model, state: "busy" }, busy_s);
      seconds.inc({ model, state: "starting" }, starting_s);
      seconds.inc({ model, state: "draining" }, draining_s);
      coldStarts.inc({ model }, cold_starts);
    },
    clear() {
      for (const each of gauges) each.reset();
      shown.clear();
    },
  };
}
