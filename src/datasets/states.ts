/**
 * The states of a dataset and of its rows, and the steps between them.
 *
 * ```
 * dataset:  receiving ─▶ ready ─▶ running ⇄ paused
 *               │          │         │  ▲      │        completed ─▶ running is a retry of failed rows
 *               ▼          │         ▼  │      │
 *           rejected       │      completed    │
 *                          └─────▶ cancelling ◀┘ ─▶ cancelled
 *
 * A paused one whose last rows end, and that has no other, is completed, too.
 *
 * row:      pending ─▶ running ─▶ succeeded | failed | cancelled | expired
 *              │                               (failed, cancelled and expired go back to pending by a retry)
 *              └────▶ failed | cancelled
 * ```
 */
import type { DatasetState, RowState } from "#contract/datasets.ts";

const NEXT = {
  receiving: ["ready", "running", "rejected"],
  ready: ["running", "cancelling"],
  running: ["paused", "completed", "cancelling"],
  paused: ["running", "cancelling", "completed"],
  cancelling: ["cancelled"],
  cancelled: [],
  completed: ["running"],
  rejected: [],
} as const satisfies Record<DatasetState, readonly DatasetState[]>;

export function canStep(from: DatasetState, to: DatasetState): boolean {
  return (NEXT[from] as readonly DatasetState[]).includes(to); // widened: `includes` of a tuple takes its members only
}

/** Rows that a retry runs again. */
export const RETRIED = ["failed", "cancelled", "expired"] as const satisfies readonly RowState[];
