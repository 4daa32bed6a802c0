/**
 * The leader sums hours that are over, and looks at the running month: what its frames cost and leave, for alerts, and
 * whether the policy asks to look at the price again, which is recorded once a month.
 */
import { Gauge, type Registry } from "prom-client";

import { deleteOldGaps, rollUp } from "#economics/earnings.ts";
import { type EconomicsMonth, readMonth } from "#economics/month.ts";
import { monthOf } from "#economics/month-range.ts";
import { recordReprice } from "#economics/noted.ts";
import type { Clock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";
import { startLoop } from "#platform/loop.ts";

const LOOK_EVERY_MS = 60_000;
/** Hours summed by one statement, whose time is bounded, and in one round: after an upgrade, a year of them takes three hours. */
const HOURS_AT_ONCE = 6;
const HOURS_PER_ROUND = 48;
const GAPS_PER_ROUND_MAX = 1_000;
/** A month's last figures come with its last hours; until then the month before is looked at, too. */
const MONTH_SETTLES_MS = 6 * 3_600_000;

export interface EconomicsWatchOptions {
  readonly db: Database;
  readonly epoch: bigint;
  readonly gpuUsdPerHour: number;
  readonly metrics: EconomicsMetrics;
  readonly clock: Clock;
  readonly log: Log;
}

export type EconomicsMetrics = ReturnType<typeof createEconomicsMetrics>;

/** Of pools of the leader's running month; none in processes that do not lead. */
export function createEconomicsMetrics(registry: Registry) {
  const gauge = (name: string, help: string) =>
    new Gauge({ name, help, labelNames: ["model"] as const, registers: [registry] });
  return {
    margin: gauge("dream_pool_margin", "What is left of the running month's revenue, 0.79 for 79 %"),
    costPerFrame: gauge("dream_pool_cost_usd_per_frame", "Rent of the running month by delivered frame, in dollars"),
    belowFloor: gauge(
      "dream_pool_margin_below_floor",
      "1 where the month has frames enough to tell, and its margin is below the floor",
    ),
  };
}

export function startEconomicsWatch(options: EconomicsWatchOptions): Service {
  const loop = startLoop({
    name: "economics",
    everyMs: LOOK_EVERY_MS,
    log: options.log,
    run: () => lookAtEconomics(options),
  });
  return {
    async stop() {
      await loop.stop();
      for (const gauge of Object.values(options.metrics)) gauge.reset();
    },
  };
}

/** One round; exported for tests. */
export async function lookAtEconomics(options: EconomicsWatchOptions): Promise<void> {
  const { db, epoch, gpuUsdPerHour, metrics, clock } = options;
  const now = new Date(clock.now());
  for (let summed = 0; summed < HOURS_PER_ROUND; summed += HOURS_AT_ONCE) {
    if ((await rollUp(db, { epoch, gpuUsdPerHour, limit: HOURS_AT_ONCE })) < HOURS_AT_ONCE) break;
  }
  await deleteOldGaps(db, epoch, GAPS_PER_ROUND_MAX);
  const earlier = monthOf(new Date(now.getTime() - MONTH_SETTLES_MS));
  if (earlier !== monthOf(now)) await record(options, await readMonth(db, { month: earlier, gpuUsdPerHour }, now));
  const month = await readMonth(db, { month: monthOf(now), gpuUsdPerHour }, now);
  await record(options, month);
  for (const gauge of Object.values(metrics)) gauge.reset();
  for (const { model, cost, reprice } of month.pools) {
    if (cost.margin !== null) metrics.margin.set({ model }, cost.margin);
    if (cost.cost_usd_per_frame !== null) metrics.costPerFrame.set({ model }, cost.cost_usd_per_frame);
    metrics.belowFloor.set({ model }, reprice.some(({ trigger }) => trigger === "margin_floor") ? 1 : 0);
  }
}

async function record({ db, epoch, log }: EconomicsWatchOptions, { month, pools }: EconomicsMonth): Promise<void> {
  for (const { model, reprice } of pools) {
    for (const trigger of reprice) {
      if (await recordReprice(db, epoch, { model, month, reprice: trigger })) {
        log.warn(
          { model, month, ...trigger },
          "the pricing policy asks to look at the price again; see `dream-engine economics`",
        );
      }
    }
  }
}
