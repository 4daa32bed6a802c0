/**
 * What to do about a dispatched rollout that has not been settled when the sweep expected it to be. The facts are
 * gathered in the order predict job, settlement job, result.json. A worker writes them in the opposite order (result,
 * settlement job, then its predict job goes), so whatever it did before we found its job missing is found afterwards.
 */
import type { Outcome, RolloutResult } from "#contract/jobs.ts";
import type { JobState } from "#queue/job-queue.ts";

export interface Facts {
  readonly now_ms: number;
  readonly deadline_ms: number;
  /** When it must have begun; null where that does not matter (any more). */
  readonly start_by_ms: number | null;
  /** Null when there is no such job: never added, or done and removed. */
  readonly predict: JobState | null;
  /** Null when there is none that can be read. */
  readonly settlement: { readonly state: JobState; readonly outcome: Outcome } | null;
  /** `result.json` of this attempt, or null. */
  readonly result: RolloutResult | null;
}

export type Action =
  /** Somebody is at it. */
  | { readonly kind: "wait" }
  /** Its job is gone and left nothing: the same id again. */
  | { readonly kind: "add_again" }
  /** `cancel`: its job waits, or a worker is still running it, and should not. */
  | { readonly kind: "settle"; readonly outcome: Outcome; readonly cancel: boolean };

/** A worker gives up at the deadline by itself and reports; this is its time to do so. */
export const DEADLINE_SLACK_MS = 15_000;

/** True when the predict job alone decides: there is no need to look further. */
export function isInHand(facts: Omit<Facts, "settlement" | "result">): boolean {
  return isLive(facts.predict) && facts.now_ms < facts.deadline_ms + DEADLINE_SLACK_MS && !isTooLateToBegin(facts);
}

/** No worker has it, and none may begin it now. */
function isTooLateToBegin({ predict, now_ms, start_by_ms }: Omit<Facts, "settlement" | "result">): boolean {
  return predict !== "active" && start_by_ms !== null && now_ms >= start_by_ms;
}

export function decide(facts: Facts): Action {
  if (isInHand(facts)) return { kind: "wait" };
  const overdue = facts.now_ms >= facts.deadline_ms + DEADLINE_SLACK_MS;
  const cancel = isLive(facts.predict);

  if (facts.settlement) {
    // Its consumer will settle it; a failed job nobody will, and past the deadline nobody should wait for either.
    const { state, outcome } = facts.settlement;
    return state === "failed" || overdue ? { kind: "settle", outcome, cancel } : { kind: "wait" };
  }
  // Delivered work is never refunded because a message was lost.
  if (facts.result) return { kind: "settle", outcome: { kind: "succeeded", result: facts.result }, cancel };
  if (facts.predict === "failed")
    return settleFailed("engine_failed", "the engine failed on it, or its worker died twice");
  const tooLate = isTooLateToBegin(facts);
  if (!overdue && !tooLate) return { kind: "add_again" };
  return cancel || !overdue
    ? { kind: "settle", outcome: { kind: "expired" }, cancel }
    : settleFailed("lost", "it was lost on its way and its deadline has passed");
}

function isLive(state: JobState | null): boolean {
  return state === "waiting" || state === "active";
}

function settleFailed(code: "engine_failed" | "lost", message: string): Action {
  return { kind: "settle", outcome: { kind: "failed", code, message, frames_delivered: 0 }, cancel: false };
}

/** Looks are frequent while a rollout is young, which is when losses are found, and rarer as it ages. */
const LOOK_EVERY_MS_MIN = 5_000;
const LOOK_EVERY_MS_MAX = 60_000;
const LOOK_PER_AGE = 0.25;

/** Epoch ms of the next look; never later than a moment that decides: when it must have begun, and the deadline. */
export function lookAgainAt(nowMs: number, dispatchedMs: number, deadlineMs: number, startByMs: number | null): number {
  const pause = Math.min(LOOK_EVERY_MS_MAX, Math.max(LOOK_EVERY_MS_MIN, (nowMs - dispatchedMs) * LOOK_PER_AGE));
  const decisive = startByMs !== null && nowMs < startByMs ? startByMs : deadlineMs + DEADLINE_SLACK_MS;
  return nowMs < decisive ? Math.min(nowMs + pause, decisive) : nowMs + LOOK_EVERY_MS_MIN;
}
