/**
 * Datasets: files whose time is over, those that stopped coming in, and those whose owner does not come back. Every blob
 * of a dataset is below its id, and its row is there before the first of them and never goes, so there are no others to
 * look for.
 */
import { datasetPrefixes } from "#contract/jobs.ts";
import { cancelIdle } from "#datasets/idle.ts";
import {
  deleteRejectedRows,
  markDatasetFilesDeleted,
  readDatasetsToClean,
  rejectAbandoned,
} from "#datasets/retention.ts";

import type { JanitorOptions } from "./janitor.ts";
import { ORPHAN_AGE_MS_MIN } from "./orphans.ts";

const DATASETS_PER_ROUND_MAX = 20;
/** Of all datasets of a round together: some fourteen million a day. */
const BLOBS_PER_ROUND_MAX = 2_500;
const DELETES_AT_ONCE = 16;
/** Rows of rejected datasets, of one statement and of a round. */
const ROWS_AT_ONCE = 5_000;
const ROWS_PER_ROUND_MAX = 250_000;

type CleanOptions = Pick<JanitorOptions, "db" | "blobs" | "retentionMs" | "datasetIdleMs" | "clock" | "log">;

/** How many blobs were deleted. */
export async function cleanDatasets(
  options: CleanOptions,
  signal: AbortSignal,
  blobsMax: number = BLOBS_PER_ROUND_MAX,
): Promise<number> {
  const { db, clock, retentionMs, datasetIdleMs, log } = options;
  for (const dataset_id of await rejectAbandoned(db, DATASETS_PER_ROUND_MAX)) {
    log.warn({ dataset_id }, "rejected a dataset whose upload broke off");
  }
  const now = clock.now();
  const idle = { nowMs: now, idleMs: datasetIdleMs, limit: DATASETS_PER_ROUND_MAX };
  for (const dataset_id of await cancelIdle(db, idle)) {
    log.info({ dataset_id }, "cancelled a dataset that nobody started or resumed");
  }
  const due = { ended: new Date(now - retentionMs), rejected: new Date(now - ORPHAN_AGE_MS_MIN) };
  let deleted = 0;
  let rowsLeft = ROWS_PER_ROUND_MAX;
  for (const id of await readDatasetsToClean(db, due, DATASETS_PER_ROUND_MAX)) {
    const keys = await firstBlobs(options, datasetPrefixes(id), blobsMax - deleted);
    for (let at = 0; at < keys.length; at += DELETES_AT_ONCE) {
      if (signal.aborted) return deleted;
      await Promise.all(keys.slice(at, at + DELETES_AT_ONCE).map((key) => options.blobs.delete(key)));
    }
    deleted += keys.length;
    // There may be more; the next round goes on with them.
    if (deleted >= blobsMax) return deleted;
    for (let rows = ROWS_AT_ONCE; rows === ROWS_AT_ONCE; rowsLeft -= rows) {
      if (signal.aborted || rowsLeft <= 0) return deleted;
      rows = await deleteRejectedRows(db, id, ROWS_AT_ONCE);
    }
    await markDatasetFilesDeleted(db, id);
    log.info({ dataset_id: id }, "deleted the files of a dataset");
  }
  return deleted;
}

async function firstBlobs({ blobs }: CleanOptions, prefixes: readonly string[], limit: number): Promise<string[]> {
  const keys: string[] = [];
  for (const prefix of prefixes) {
    for await (const { key } of blobs.list(prefix)) {
      if (keys.length >= limit) return keys;
      keys.push(key);
    }
  }
  return keys;
}
