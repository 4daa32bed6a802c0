/** The alarm under the margin floor, and the ways out of it that the pricing policy names, with the numbers of each. */
import { NOTICE_MS } from "#billing/notice.ts";

import type { PoolCost } from "./cost.ts";
import { MARGIN_FLOOR } from "./cost.ts";

const MILS_PER_USD = 10_000;
const DAY_MS = 86_400_000;

export type WayOut =
  /** The engine has to get by with this share of the worker seconds that it takes now. */
  | { readonly way: "re-optimise the engine"; readonly seconds_share: number }
  /** An accelerator may cost so much: renegotiate, or move to a cheaper provider. */
  | { readonly way: "pay less rent"; readonly gpu_usd_per_hour: number }
  | { readonly way: "raise the price"; readonly price_mils_per_frame: number; readonly notice_days: number };

export type FloorCheck =
  | { readonly kind: "healthy"; readonly margin: number }
  /** Frames were delivered and nobody recorded the seconds of workers (FLEET=none): what they cost is not known here. */
  | { readonly kind: "no record" }
  /** Nothing was earned; `rent_usd` was paid all the same. */
  | { readonly kind: "no revenue"; readonly rent_usd: number }
  | {
      readonly kind: "below the floor";
      readonly margin: number;
      readonly floor: number;
      readonly options: readonly WayOut[];
    };

/** The floor itself is healthy: the policy asks for action where cost exceeds what it allows. */
export function checkFloor(cost: PoolCost, gpuUsdPerHour: number, floor = MARGIN_FLOOR): FloorCheck {
  const { margin, cost_usd_per_frame: each, rent_usd, revenue_usd } = cost;
  if (margin === null || each === null) return { kind: "no revenue", rent_usd };
  if (margin >= floor) return { kind: "healthy", margin };
  const share = ((1 - floor) * revenue_usd) / rent_usd;
  return {
    kind: "below the floor",
    margin,
    floor,
    options: [
      { way: "re-optimise the engine", seconds_share: share },
      { way: "pay less rent", gpu_usd_per_hour: gpuUsdPerHour * share },
      {
        way: "raise the price",
        price_mils_per_frame: Math.ceil((each / (1 - floor)) * MILS_PER_USD),
        notice_days: NOTICE_MS / DAY_MS,
      },
    ],
  };
}

/** As an operator reads it. */
export function wayOutText(option: WayOut, now: Date): string {
  switch (option.way) {
    case "re-optimise the engine":
      return `re-optimise the engine: the same frames with ${(100 * option.seconds_share).toFixed(1)} % of the worker seconds`;
    case "pay less rent":
      return `renegotiate, or move to a cheaper provider: at most $${Number(option.gpu_usd_per_hour.toFixed(2))} an accelerator and hour`;
    case "raise the price": {
      const from = new Date(now.getTime() + option.notice_days * DAY_MS).toISOString().slice(0, 10);
      return `raise the price to ${option.price_mils_per_frame} mils a frame, with ${option.notice_days} days' notice: from ${from} at the earliest (dream-engine prices set)`;
    }
    default:
      throw new Error(`no words for the way out ${JSON.stringify(option satisfies never)}`);
  }
}
