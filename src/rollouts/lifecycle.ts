/**
 * The states of a rollout and the steps between them.
 *
 * ```
 * queued ──▶ dispatched ──▶ succeeded
 *    │           │
 *    └───────────┴────────▶ failed | cancelled | expired
 * ```
 *
 * and one step out of an end: TAKEN_BACK.
 *
 * The trigger `check_rollout_transition` holds the same table, so that no statement can take another step
 * (test/rollouts/lifecycle.test.ts compares the two).
 */
import type { RolloutStatus, TerminalStatus } from "#contract/rollout.ts";

const NEXT = {
  queued: ["dispatched", "failed", "cancelled", "expired"],
  dispatched: ["succeeded", "failed", "cancelled", "expired"],
  succeeded: [],
  failed: [],
  cancelled: [],
  expired: [],
} as const satisfies Record<RolloutStatus, readonly RolloutStatus[]>;

export function canTransition(from: RolloutStatus, to: RolloutStatus): boolean {
  return (NEXT[from] as readonly RolloutStatus[]).includes(to); // widened: `includes` of a tuple takes its members only
}

/**
 * A dataset's rollout whose video is gone before its row could keep it did not succeed after all: its owner is told of rows,
 * and no row had it yet. With a refund of all that it was charged, and only where nothing was refunded before.
 */
export const TAKEN_BACK = { from: "succeeded", to: "failed", error_code: "video_lost" } as const satisfies {
  readonly from: TerminalStatus;
  readonly to: TerminalStatus;
  readonly error_code: string;
};

/**
 * Ends that gave nobody anything, and refunded all of it. Which of the two a rollout meets at its deadline is a race, so
 * they mean the same to a retry: its idempotency key is free again, and it runs anew.
 */
export function isCalledOff(status: RolloutStatus): boolean {
  return status === "cancelled" || status === "expired";
}

export function isTerminal(status: RolloutStatus): status is TerminalStatus {
  return NEXT[status].length === 0;
}
