/**
 * Blobs that no row names: inputs of requests that were refused or died after the upload, and files of attempts and
 * runs that did not win. Rollout ids are random, so their first digits cut the store into equal parts; one part is
 * looked at a round, which bounds the work of a round and still reaches everything in about an hour.
 */
import { blobKeys } from "#contract/jobs.ts";
import type { Rollout } from "#rollouts/rollout.ts";

/** An upload comes before its row, and a slow client can take minutes in between. */
export const ORPHAN_AGE_MS_MIN = 3_600_000;

export const PARTS = 256;

/** Key prefix of one part; `round` counts up for ever. */
export function partPrefix(round: number): string {
  return `rollouts/rollout_${(round % PARTS).toString(16).padStart(2, "0")}`;
}

/** The rollout a key belongs to, or null for a key of something else, which is never touched. */
export function rolloutIdOf(key: string): string | null {
  return /^rollouts\/(rollout_[0-9a-f]{32})\//.exec(key)?.[1] ?? null;
}

/** What of a rollout decides which of its blobs are still needed. */
export type BlobOwner = Pick<Rollout, "id" | "status" | "attempt" | "result" | "files_deleted_at">;

/** `row` is undefined when no rollout has the key's id. */
export function isOrphan(key: string, row: BlobOwner | undefined): boolean {
  if (!row || row.files_deleted_at !== null) return true;
  if (row.status === "queued" || row.status === "dispatched") return false;
  if (key === blobKeys.frame(row.id) || key === blobKeys.actions(row.id)) return false;
  if (row.result === null) return true;
  // Of several runs of an attempt (one of them on a worker that had frozen) only one was settled.
  return key !== blobKeys.result(row.id, row.attempt) && !row.result.video_keys.includes(key);
}
