/** What the month has earned and cost so far, as `dream-engine economics` tells it, cut to what a page shows. */
import type { PoolCost } from "#economics/cost.ts";
import { wayOutText } from "#economics/margin-floor.ts";
import { readMonth } from "#economics/month.ts";
import type { Reprice } from "#economics/reprice.ts";
import type { Database } from "#platform/database.ts";

export interface PoolMoney {
  readonly model: string;
  readonly frames: number;
  readonly revenue_usd: number;
  readonly rent_usd: number;
  /** Null where no frame was delivered. */
  readonly cost_usd_per_frame: number | null;
  /** 0.79 for 79 %; null without revenue. */
  readonly margin: number | null;
}

export interface Money {
  /** "2026-11" */
  readonly month: string;
  readonly gpu_usd_per_hour: number;
  readonly total: PoolMoney;
  readonly pools: readonly PoolMoney[];
  readonly below_floor: readonly {
    readonly model: string;
    readonly margin: number;
    readonly floor: number;
    /** What the pricing policy names, each in words. */
    readonly ways_out: readonly string[];
  }[];
}

export async function readMoney(db: Database, gpuUsdPerHour: number, now: Date): Promise<Money> {
  const month = await readMonth(db, { month: now.toISOString().slice(0, "2026-11".length), gpuUsdPerHour }, now);
  const pools = month.pools.map((pool) => poolMoney(pool.model, pool));
  return {
    month: month.month,
    gpu_usd_per_hour: month.gpu_usd_per_hour,
    total: poolMoney("all pools", month.total),
    pools,
    below_floor: month.pools.flatMap(({ model, reprice }) =>
      reprice.flatMap((trigger) => belowFloor(model, trigger, now)),
    ),
  };
}

function poolMoney(model: string, { frames, cost }: { readonly frames: number; readonly cost: PoolCost }): PoolMoney {
  const { revenue_usd, rent_usd, cost_usd_per_frame, margin } = cost;
  return { model, frames, revenue_usd, rent_usd, cost_usd_per_frame, margin };
}

/** Only once the month has frames enough to tell (economics/reprice.ts): a morning after one cold start says nothing. */
function belowFloor(model: string, trigger: Reprice, now: Date): Money["below_floor"] {
  if (trigger.trigger !== "margin_floor") return [];
  const { margin, floor, options } = trigger;
  return [{ model, margin, floor, ways_out: options.map((option) => wayOutText(option, now)) }];
}
