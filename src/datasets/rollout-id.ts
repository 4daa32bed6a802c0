/**
 * The id of a row's rollout follows from which row and which try it is. Whoever turns the same try into a rollout a second
 * time, because a process died or froze in between, meets the primary key, and nothing is charged twice.
 */
import { createHash } from "node:crypto";

import type { DatasetId, RolloutId } from "#contract/ids.ts";

/** `attempt`: `try` of the row, from 1. */
export function rowRolloutId(dataset: DatasetId, n: number, attempt: number): RolloutId {
  const hash = createHash("sha256").update(`${dataset}\n${n}\n${attempt}`).digest("hex");
  return `rollout_${hash.slice(0, 32)}` as RolloutId; // minted here
}
