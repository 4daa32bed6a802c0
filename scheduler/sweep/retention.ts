/**
 * Deletes what has been kept long enough: blobs first, then the mark, so that a crash in between leaves work to be found
 * again and never a file that nobody will delete.
 */
import { blobKeys } from "#contract/jobs.ts";
import { deleteUploads, filesOf, markFilesDeleted, readOutdated, readOutdatedUploads } from "#rollouts/retention.ts";

import type { JanitorOptions } from "./janitor.ts";

/** A round is every 15 s: over two million rollouts a day. */
const ROLLOUTS_PER_ROUND_MAX = 500;
const UPLOADS_PER_ROUND_MAX = 500;
/** Deletes under way at once; each is a request where the store is another machine. */
const DELETES_AT_ONCE = 16;

type RetentionOptions = Pick<JanitorOptions, "db" | "blobs" | "epoch" | "retentionMs" | "clock" | "log">;

/** Inputs and videos of rollouts that ended long ago; of how many. */
export async function deleteOutdatedFiles(options: RetentionOptions, signal: AbortSignal): Promise<number> {
  const { db, epoch, clock, retentionMs, log } = options;
  const before = new Date(clock.now() - retentionMs);
  const outdated = await readOutdated(db, before, ROLLOUTS_PER_ROUND_MAX);
  if (outdated.length === 0) return 0;
  const whole = await deleteAll(options, outdated.flatMap(filesOf), signal);
  if (!whole) return 0;
  await markFilesDeleted(
    db,
    epoch,
    outdated.map(({ id }) => id),
  );
  log.info({ rollouts: outdated.length, before }, "deleted inputs and videos whose time was over");
  return outdated.length;
}

/** Uploads that nobody may need any more; how many. */
export async function deleteOutdatedUploads(options: RetentionOptions, signal: AbortSignal): Promise<number> {
  const { db, epoch, clock, retentionMs, log } = options;
  const ids = await readOutdatedUploads(db, new Date(clock.now() - retentionMs), UPLOADS_PER_ROUND_MAX);
  if (ids.length === 0) return 0;
  if (!(await deleteAll(options, ids.map(blobKeys.upload), signal))) return 0;
  await deleteUploads(db, epoch, ids);
  log.info({ uploads: ids.length }, "deleted uploads whose time was over");
  return ids.length;
}

/** False when it was told to stop before the end. */
async function deleteAll(
  { blobs }: Pick<RetentionOptions, "blobs">,
  keys: readonly string[],
  signal: AbortSignal,
): Promise<boolean> {
  for (let at = 0; at < keys.length; at += DELETES_AT_ONCE) {
    if (signal.aborted) return false;
    await Promise.all(keys.slice(at, at + DELETES_AT_ONCE).map((key) => blobs.delete(key)));
  }
  return true;
}
