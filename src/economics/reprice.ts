/**
 * When the price is to be looked at again, by the pricing policy: another rent, an engine that got cheaper, a customer who
 * commits, competition, and the margin floor. Pure: of what a month brought. What an operator then does about it is a new row
 * of `prices`, which gives 30 days' notice of a rise (billing/prices.ts).
 */
import type { Commitment } from "./always-warm.ts";
import type { PoolCost } from "./cost.ts";
import type { FloorCheck } from "./margin-floor.ts";

/** "A new optimisation lands and drops cost by ≥ 20%." */
const COST_DROP = 0.2;
/** "A customer asks for a committed-use discount (>1M frames/month for 12 months)." */
const DISCOUNT_FRAMES = 1_000_000;
const DISCOUNT_MONTHS = 12;
/** Ten of the published sessions (100 rollouts of 49 frames): fewer say nothing of a month, one cold start would decide. */
export const TELLING_FRAMES = 10 * 100 * 49;

const MILS_PER_USD = 10_000;

export type Reprice =
  | (Extract<FloorCheck, { kind: "below the floor" }> & { readonly trigger: "margin_floor" })
  /** An accelerator costs something else than before; the cost basis is to be derived anew. */
  | { readonly trigger: "rent"; readonly from_usd_per_hour: number; readonly to_usd_per_hour: number }
  /** What one frame more costs has dropped; half of that is the customers'. */
  | {
      readonly trigger: "cost_drop";
      readonly from_usd_per_frame: number;
      readonly to_usd_per_frame: number;
      readonly drop: number;
      /** List price less half of the drop; prices are whole mils, so it may take several drops to reach the next. */
      readonly price_mils_per_frame: number;
    }
  | { readonly trigger: "committed_use"; readonly customer: string; readonly frames_per_month: number };

export interface RepriceFacts {
  readonly frames: number;
  readonly cost: PoolCost;
  readonly floor: FloorCheck;
  /** Whether the month is over, and its figures final. */
  readonly complete: boolean;
  readonly gpu_usd_per_hour: number;
  readonly price_mils_per_frame: number;
  /** The rent before this month. */
  readonly rent_before: number;
  /** Null: nothing of it is known. */
  readonly month_before: { readonly frames: number; readonly cost: PoolCost } | null;
  /** That hold now. */
  readonly commitments: readonly (Commitment & { readonly months: number })[];
}

export function repriceTriggers(facts: RepriceFacts): Reprice[] {
  return [...floorTrigger(facts), ...rentTrigger(facts), ...dropTrigger(facts), ...committed(facts)];
}

function floorTrigger({ floor, frames, complete }: RepriceFacts): Reprice[] {
  const tells = complete || frames >= TELLING_FRAMES;
  return floor.kind === "below the floor" && tells ? [{ trigger: "margin_floor", ...floor }] : [];
}

function rentTrigger({ gpu_usd_per_hour: to, rent_before: from }: RepriceFacts): Reprice[] {
  return from === to ? [] : [{ trigger: "rent", from_usd_per_hour: from, to_usd_per_hour: to }];
}

function dropTrigger({ frames, cost, month_before: before, price_mils_per_frame }: RepriceFacts): Reprice[] {
  const [from, to] = [before?.cost.marginal_usd_per_frame, cost.marginal_usd_per_frame];
  if (from == null || to === null || from === 0) return [];
  if (Math.min(frames, before?.frames ?? 0) < TELLING_FRAMES) return [];
  const drop = (from - to) / from;
  if (drop < COST_DROP) return [];
  const price = price_mils_per_frame - ((from - to) / 2) * MILS_PER_USD;
  return [{ trigger: "cost_drop", from_usd_per_frame: from, to_usd_per_frame: to, drop, price_mils_per_frame: price }];
}

function committed({ commitments }: RepriceFacts): Reprice[] {
  return commitments
    .filter(({ frames_per_month, months }) => frames_per_month > DISCOUNT_FRAMES && months >= DISCOUNT_MONTHS)
    .map(({ customer, frames_per_month }) => ({ trigger: "committed_use", customer, frames_per_month }));
}
