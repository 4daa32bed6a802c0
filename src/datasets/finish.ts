/**
 * The end of a dataset, when none of its rows waits or runs any more. What became of them is written into the blob store
 * first, beside their videos, so that whoever is told of the end finds all of it.
 */
import { createWriteStream } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";

import type { BlobStore } from "#blobs/blob-store.ts";
import type { DatasetId } from "#contract/ids.ts";
import { blobKeys } from "#contract/jobs.ts";
import type { Database } from "#platform/database.ts";
import { tellWebhooks } from "#webhooks/outbox.ts";

import type { Dataset } from "./dataset.ts";
import { RESULT_FORMATS, type ResultFormat, resultPages, resultsJsonl } from "./results.ts";
import { resultsParquet } from "./results-parquet.ts";
import { lockMine, type Turn } from "./turn.ts";

export interface FinishParts {
  readonly db: Database;
  readonly blobs: BlobStore;
}

/** Whether there is nothing left to do but to say so. */
export function isOver({ state, rows_pending, rows_running }: Dataset): boolean {
  return (state === "running" || state === "cancelling") && rows_pending === 0 && rows_running === 0;
}

/** False when it did not end after all: the turn is another one's, or rows are to be run once more. */
export async function finishDataset(turn: Turn, parts: FinishParts, signal: AbortSignal): Promise<boolean> {
  for (const format of RESULT_FORMATS) await storeResults(turn.dataset_id, format, parts, signal);
  return await parts.db.transaction(async (tx) => {
    const dataset = await lockMine(tx, turn);
    if (!dataset || !isOver(dataset)) return false;
    const { id: dataset_id, customer_id, webhook_url } = dataset;
    const state = dataset.state === "cancelling" ? "cancelled" : "completed";
    await tx.query(`UPDATE datasets SET state = $2, finished_at = now(), message = NULL WHERE id = $1`, [
      dataset_id,
      state,
    ]);
    await tellWebhooks(tx, { customer_id, event: `dataset.${state}`, dataset_id, webhook_url });
    return true;
  });
}

/** A file of any length without holding it: written here first, because a blob is written whole or not at all. */
async function storeResults(
  id: DatasetId,
  format: ResultFormat,
  { db, blobs }: FinishParts,
  signal: AbortSignal,
): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "dream-results-"));
  try {
    const path = join(folder, `metadata.${format}`);
    const pages = resultPages(db, id);
    const pieces = format === "jsonl" ? resultsJsonl(pages) : resultsParquet(pages, { withLinks: false });
    await pipeline(Readable.from(pieces, { objectMode: false }), createWriteStream(path, { mode: 0o600 }), { signal });
    await blobs.putFile(blobKeys.datasetResults(id, format), path);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
