/**
 * The states of a rollout and the steps between them.
 *
 * ```
 * queued ──▶ dispatched ──▶ succeeded
 *    │           │
 *    └───────────┴────────▶ failed | cancelled | expired
 * ```
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

export function isTerminal(status: RolloutStatus): status is TerminalStatus {
  return NEXT[status].length === 0;
}
