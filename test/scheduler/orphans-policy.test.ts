import { expect, test } from "vitest";

import { blobKeys } from "#contract/jobs.ts";
import type { RolloutId } from "#contract/ids.ts";
import type { RolloutStatus } from "#contract/rollout.ts";
import { isOrphan, PARTS, partPrefix, rolloutIdOf } from "#scheduler/sweep/orphans.ts";

const id = `rollout_${"ab".repeat(16)}` as RolloutId;
const video = (attempt: number, run = "one"): string => blobKeys.video(id, attempt, run, 0);
const timings = { engine_wall_ms: 1, fetch_ms: 1, encode_ms: 1, total_ms: 3 };
/** Of a rollout that succeeded, run "one" of its last attempt was settled. */
const row = (status: RolloutStatus, attempt: number, files_deleted_at: Date | null = null) => ({
  files_deleted_at,
  id,
  status,
  attempt,
  result: status === "succeeded" ? { video_keys: [video(attempt)], frames: 5, timings } : null,
});

test.each<[string, string, ReturnType<typeof row> | undefined, boolean]>([
  ["an upload whose request never became a rollout", blobKeys.frame(id), undefined, true],
  ["inputs of a rollout that waits", blobKeys.actions(id), row("queued", 0), false],
  ["inputs of one that ended", blobKeys.frame(id), row("failed", 1), false],
  ["files of an attempt that runs", video(1), row("dispatched", 1), false],
  ["the video that was delivered", video(2), row("succeeded", 2), false],
  ["its result", blobKeys.result(id, 2), row("succeeded", 2), false],
  ["files of an attempt that did not win", video(1), row("succeeded", 2), true],
  ["the result of an attempt that did not win", blobKeys.result(id, 1), row("succeeded", 2), true],
  ["a video of the same attempt's other run", video(2, "two"), row("succeeded", 2), true],
  ["videos of a second run that goes on", video(1, "two"), row("dispatched", 1), false],
  ["what was written after retention had deleted its files", video(2), row("succeeded", 2, new Date()), true],
  ["attempt 1 is not attempt 10", video(10), row("succeeded", 1), true],
  ["a video that nobody gets", video(1), row("cancelled", 1), true],
])("%s", (_name, key, owner, orphan) => {
  expect(isOrphan(key, owner)).toBe(orphan);
});

test("keys of something else are nobody's orphans", () => {
  expect(rolloutIdOf("models/pusht-small/model.json")).toBeNull();
  expect(rolloutIdOf("rollouts/notes.txt")).toBeNull();
});

test("the parts cover every rollout once", () => {
  const prefixes = Array.from({ length: PARTS }, (_, round) => partPrefix(round));
  expect(new Set(prefixes).size).toBe(PARTS);
  expect(partPrefix(PARTS)).toBe(partPrefix(0));
  expect(prefixes.filter((prefix) => blobKeys.frame(id).startsWith(prefix))).toHaveLength(1);
});
