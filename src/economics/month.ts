/** A month of each pool, in UTC: what its frames cost and brought, by the formula of cost.ts, and what that asks for. */
import { priceFor } from "#billing/prices.ts";
import { ApiError } from "#contract/errors.ts";
import { type Mils, mils } from "#contract/mils.ts";
import type { Sql } from "#platform/database.ts";

import { alwaysWarm, type AlwaysWarm, type WarmTrigger, warmTriggers } from "./always-warm.ts";
import { costOf, MARGIN_FLOOR, type PoolCost, PUBLISHED, publishedUse } from "./cost.ts";
import { type PoolPeriod, readPeriod, readRentBefore } from "./earnings.ts";
import { checkFloor, type FloorCheck } from "./margin-floor.ts";
import { monthOf, monthRange } from "./month-range.ts";
import { readNoted } from "./noted.ts";
import { type Reprice, repriceTriggers } from "./reprice.ts";

export interface MonthFigures {
  /** Of which some frame was delivered. */
  readonly rollouts: number;
  readonly frames: number;
  readonly revenue_mils: Mils;
  readonly refunded_mils: Mils;
  /** Means of the rollouts that succeeded, in seconds; null without one. The rest of a rollout is fetching, encoding, storing. */
  readonly engine_wall_s_per_rollout: number | null;
  readonly rest_s_per_rollout: number | null;
  readonly cold_starts: number;
  /** Worker seconds; all of them are rented. */
  readonly working_s: number;
  readonly starting_s: number;
  readonly idle_s: number;
  readonly gpu_usd_per_hour: number;
  readonly cost: PoolCost;
  readonly floor: FloorCheck;
}

export interface PoolMonth extends MonthFigures {
  readonly model: string;
  /** Frames of requests that came while no worker was ready. */
  readonly gap_frames: number;
  /** Conditions of now for keeping a worker warm, and what that would cost. */
  readonly warm: AlwaysWarm & { readonly triggers: readonly WarmTrigger[] };
  /** That hold by this month's figures; the scheduler records each once. */
  readonly reprice: readonly Reprice[];
}

export interface EconomicsMonth {
  readonly month: string;
  readonly from: Date;
  readonly until: Date;
  /** Whether the month is over and nothing more is added to it. */
  readonly complete: boolean;
  /** As the scheduler last reckoned; figures have the mean of their own hours. */
  readonly gpu_usd_per_hour: number;
  readonly margin_floor: number;
  readonly list_price_mils_per_frame: number;
  readonly published: PublishedFigures;
  readonly pools: readonly PoolMonth[];
  /** All pools together. */
  readonly total: MonthFigures;
}

/** The cost basis of 2026-05-05, computed; what the page rounds it to is in PUBLISHED. */
export interface PublishedFigures extends PoolCost {
  readonly gpu_usd_per_hour: number;
  readonly price_mils_per_frame: number;
  readonly engine_wall_s_per_rollout: number;
  readonly rest_s_per_rollout: number;
}

export interface MonthOptions {
  /** 2026-11 */
  readonly month: string;
  /** Of hours that are not summed yet (earnings.ts). */
  readonly gpuUsdPerHour: number;
}

/** Of what ends at that moment at the latest, the whole is said to be settled an hour later (earnings.ts). */
const SETTLED_AFTER_MS = 3_600_000;

/** Throws ApiError(invalid_request) on what is no month, and on one that has not begun. */
export async function readMonth(sql: Sql, { month, gpuUsdPerHour }: MonthOptions, now: Date): Promise<EconomicsMonth> {
  const { from, until } = monthRange(month);
  if (from > now)
    throw new ApiError("invalid_request", `month: ${month} has not begun (UTC); expected ${monthOf(now)} or before`);
  const [periods, before, rent, rent_before, noted, price] = await Promise.all([
    readPeriod(sql, { from, until, gpuUsdPerHour }),
    readPeriod(sql, { ...monthRange(monthOf(new Date(from.getTime() - 1))), gpuUsdPerHour }),
    readRentBefore(sql, until),
    readRentBefore(sql, from),
    readNoted(sql, now),
    priceFor(sql, null),
  ]);
  const complete = now.getTime() >= until.getTime() + SETTLED_AFTER_MS;
  const pools = periods.map((period): PoolMonth => {
    const figures = figuresOf([period], gpuUsdPerHour);
    const { complaints = [], commitments = [] } = noted.get(period.model) ?? {};
    const warm = alwaysWarm(gpuUsdPerHour, Math.max(1, price));
    const earlier = before.find(({ model }) => model === period.model);
    return {
      model: period.model,
      ...figures,
      gap_frames: period.gap_frames,
      warm: {
        ...warm,
        triggers: warmTriggers(
          { complaints, commitments, gap_frames: period.gap_frames, break_even_frames: warm.break_even_frames },
          now,
        ),
      },
      reprice: repriceTriggers({
        ...figures,
        complete,
        // The scheduler's word; a command may run where the setting is another.
        gpu_usd_per_hour: rent ?? gpuUsdPerHour,
        price_mils_per_frame: price,
        rent_before: rent_before ?? PUBLISHED.gpu_usd_per_hour,
        month_before: earlier ? figuresOf([earlier], gpuUsdPerHour) : null,
        commitments,
      }),
    };
  });
  return {
    month,
    from,
    until,
    complete,
    gpu_usd_per_hour: rent ?? gpuUsdPerHour,
    margin_floor: MARGIN_FLOOR,
    list_price_mils_per_frame: price,
    published: publishedFigures(),
    pools,
    total: figuresOf(periods, gpuUsdPerHour),
  };
}

function figuresOf(periods: readonly PoolPeriod[], gpuUsdPerHour: number): MonthFigures {
  const sum = (value: (period: PoolPeriod) => number): number => periods.reduce((all, one) => all + value(one), 0);
  const sumMils = (value: (period: PoolPeriod) => Mils): Mils =>
    mils(periods.reduce((all, one) => all + value(one), 0n));
  const working_s = sum((period) => period.working_s);
  const starting_s = sum((period) => period.starting_s);
  const idle_s = sum((period) => period.idle_s);
  const seconds = working_s + starting_s + idle_s;
  const rented = sum((one) => (one.working_s + one.starting_s + one.idle_s) * (one.gpu_usd_per_hour ?? 0));
  const gpu_usd_per_hour = seconds === 0 ? gpuUsdPerHour : rented / seconds;
  const timed = sum((period) => period.timed);
  const engine_wall_s = sum((period) => period.engine_wall_ms) / 1000;
  const total_s = sum((period) => period.total_ms) / 1000;
  const use = {
    frames: sum(({ frames }) => frames),
    revenue: sumMils(({ earned_mils }) => earned_mils),
    cold_starts: sum(({ cold_starts }) => cold_starts),
    engine_wall_s,
    working_s,
    starting_s,
    idle_s,
  };
  const reckoned = costOf(use, gpu_usd_per_hour);
  // Of pools that somebody else runs nobody knows the seconds, and what cost nothing on paper was not free.
  const recorded = periods.every((one) => one.frames === 0 || one.working_s + one.starting_s + one.idle_s > 0);
  const unknown = { cost_usd_per_frame: null, marginal_usd_per_frame: null, margin: null };
  const cost = recorded ? reckoned : { ...reckoned, ...unknown };
  return {
    rollouts: sum(({ rollouts }) => rollouts),
    frames: use.frames,
    revenue_mils: use.revenue,
    refunded_mils: sumMils(({ refunded_mils }) => refunded_mils),
    engine_wall_s_per_rollout: timed === 0 ? null : engine_wall_s / timed,
    rest_s_per_rollout: timed === 0 ? null : Math.max(0, total_s - engine_wall_s) / timed,
    cold_starts: use.cold_starts,
    working_s,
    starting_s,
    idle_s,
    gpu_usd_per_hour,
    cost,
    floor: recorded ? checkFloor(cost, gpu_usd_per_hour) : { kind: "no record" },
  };
}

function publishedFigures(): PublishedFigures {
  const { gpu_usd_per_hour, price_mils_per_frame, engine_wall_s, rollout_s } = PUBLISHED;
  const use = publishedUse();
  return {
    ...costOf({ ...use, revenue: mils(use.frames * price_mils_per_frame) }, gpu_usd_per_hour),
    gpu_usd_per_hour,
    price_mils_per_frame,
    engine_wall_s_per_rollout: engine_wall_s,
    rest_s_per_rollout: rollout_s - engine_wall_s,
  };
}
