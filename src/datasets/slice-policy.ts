/**
 * How many rows of a dataset are turned into rollouts next. What is in flight is paid for and stands in the bulk lane
 * in front of whoever comes next, so it is as little as keeps the workers busy until the runner looks again.
 */
import { type Mils, mils } from "#contract/mils.ts";

/** Below it the workers of a small fleet could run dry between two looks. */
export const IN_FLIGHT_MIN = 32;
/** Also what a cancellation has to take back, row by row. */
export const IN_FLIGHT_MAX = 512;
/** In flight is what ends in so many seconds at the rate of late. */
const IN_FLIGHT_S = 20;
/** Rows of one transaction, which holds the customer's account for as long as it takes. */
export const SLICE_ROWS_MAX = 64;

/** Rows to take up now, 0 to SLICE_ROWS_MAX. */
export function sliceSize(dataset: {
  readonly rows_pending: number;
  readonly rows_running: number;
  readonly rows_per_s: number;
}): number {
  const target = Math.min(IN_FLIGHT_MAX, Math.max(IN_FLIGHT_MIN, Math.ceil(dataset.rows_per_s * IN_FLIGHT_S)));
  return Math.max(0, Math.min(SLICE_ROWS_MAX, target - dataset.rows_running, dataset.rows_pending));
}

/** What a dataset has spent and has in hand, against what it may. */
export interface Spending {
  readonly budget_mils: Mils | null;
  readonly charged_mils: Mils;
  readonly refunded_mils: Mils;
  readonly held_mils: Mils;
}

/**
 * Whether the next row may be paid for. `wait`: not while what is in flight may still be refunded; `reached`: not at all.
 */
export function withinBudget(spending: Spending, next: Mils): "yes" | "wait" | "reached" {
  if (spending.budget_mils === null) return "yes";
  const spent = mils(spending.charged_mils - spending.refunded_mils);
  if (spent + next > spending.budget_mils) return "reached";
  return spent + spending.held_mils + next > spending.budget_mils ? "wait" : "yes";
}

/** How many of these rows, in their order and by their expected frames, this balance pays for; at least one to try. */
export function payable(frames: readonly number[], balance: Mils, price: number): number {
  let left = balance;
  let count = 0;
  for (const each of frames) {
    left = mils(left - BigInt(each * price));
    if (left < 0n) break;
    count += 1;
  }
  return Math.max(1, count);
}
