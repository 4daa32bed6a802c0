/**
 * What a frame costs us and what it leaves, by the formula of the published cost basis (2026-05-05): every second that an
 * accelerator is rented is paid, whatever it does in it, and all of it is allocated to the frames that were delivered.
 *
 *   cost a frame = rent of (working + starting + idle seconds) ÷ frames delivered
 *
 * Rents are dollars as floats, because they are estimates of somebody else's bill; what customers pay is mils.
 */
import type { Mils } from "#contract/mils.ts";

const MILS_PER_USD = 10_000;
const SECONDS_PER_HOUR = 3_600;

/** What the page says and what it is made of; each number can be configured, and these are the defaults. */
export const PUBLISHED = {
  /** One H100 SXM. */
  gpu_usd_per_hour: 3.95,
  price_mils_per_frame: 5,
  frames_per_rollout: 49,
  /** Of `rollout_s`; the rest is transit and encoding. */
  engine_wall_s: 2.62,
  /** All in all, of a warm worker. */
  rollout_s: 4,
  cold_start_s: 70,
  rollouts_per_cold_start: 100,
  /** Rounded there; computed, it is $0.000105 and 79 %. The page says 82 % in another place. */
  cost_usd_per_frame: 0.0001,
  margin: 0.8,
} as const;

/** Below it something has to change (margin-floor.ts). */
export const MARGIN_FLOOR = 0.7;

/** What the workers of a pool did in a period, all together, and what came of it. */
export interface PoolUse {
  /** Delivered, and so earned. */
  readonly frames: number;
  /** Charged and not refunded. */
  readonly revenue: Mils;
  /** Seconds in which engines ran forwards. */
  readonly engine_wall_s: number;
  /** Seconds in which workers had something in hand: engine wall, and fetching, encoding and storing beside none of it. */
  readonly working_s: number;
  readonly cold_starts: number;
  /** Seconds from a worker's start to its readiness. */
  readonly starting_s: number;
  /** Seconds in which warm workers had nothing in hand. */
  readonly idle_s: number;
}

export interface PoolCost {
  readonly rent_usd: number;
  /** Which part of the rent went where; they add up to it. */
  readonly working_usd: number;
  readonly starting_usd: number;
  readonly idle_usd: number;
  /** Null where no frame was delivered, as the next ones. */
  readonly cost_usd_per_frame: number | null;
  /** Without starts and idleness: what one frame more costs. */
  readonly marginal_usd_per_frame: number | null;
  readonly revenue_usd: number;
  /** What is left of the revenue, 0.79 for 79 %; below 0 at a loss. Null without revenue. */
  readonly margin: number | null;
}

/** Throws RangeError on a rent or a time that cannot be. */
export function costOf(use: PoolUse, gpuUsdPerHour: number): PoolCost {
  const { working_s, starting_s, idle_s, engine_wall_s } = use;
  for (const [name, value] of Object.entries({ gpuUsdPerHour, working_s, starting_s, idle_s, engine_wall_s })) {
    if (!(value >= 0 && Number.isFinite(value))) throw new RangeError(`${name} is ${value}; expected 0 or more`);
  }
  if (!Number.isSafeInteger(use.frames) || use.frames < 0) {
    throw new RangeError(`frames are ${use.frames}; expected a whole number, 0 or more`);
  }
  const usd = (seconds: number): number => (seconds * gpuUsdPerHour) / SECONDS_PER_HOUR;
  const perFrame = (cost: number): number | null => (use.frames === 0 ? null : cost / use.frames);
  const rent = usd(working_s + starting_s + idle_s);
  const revenue = Number(use.revenue) / MILS_PER_USD;
  return {
    rent_usd: rent,
    working_usd: usd(working_s),
    starting_usd: usd(starting_s),
    idle_usd: usd(idle_s),
    cost_usd_per_frame: perFrame(rent),
    marginal_usd_per_frame: perFrame(usd(working_s)),
    revenue_usd: revenue,
    margin: revenue === 0 ? null : (revenue - rent) / revenue,
  };
}

/** The pool that the published figures are of: one session of a hundred rollouts, from a cold start on. */
export function publishedUse(): Omit<PoolUse, "revenue"> {
  const rollouts = PUBLISHED.rollouts_per_cold_start;
  return {
    frames: rollouts * PUBLISHED.frames_per_rollout,
    engine_wall_s: rollouts * PUBLISHED.engine_wall_s,
    working_s: rollouts * PUBLISHED.rollout_s,
    cold_starts: 1,
    starting_s: PUBLISHED.cold_start_s,
    idle_s: 0,
  };
}
