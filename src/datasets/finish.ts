/**
 * The end of a dataset, when none of its rows waits or runs any more. What became of them is written into the blob store
 * first, beside their videos, so that whoever is told of the end finds all of it.
 */
import { createWriteStream } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";

import type { BlobStore } from "#blobs/blob-store.ts";
import type { DatasetId } from "#contract/ids.ts";
import { blobKeys } from "#contract/jobs.ts";
import type { Database } from "#platform/database.ts";
import { tellWebhooks } from "#webhooks/outbox.ts";

import type { Dataset } from "./dataset.ts";
import { resultPages, resultsJsonl } from "./results.ts";
import { resultsParquet } from "./results-parquet.ts";
import { lockMine, type Turn } from "./turn.ts";

export interface FinishParts {
  readonly db: Database;
  readonly blobs: BlobStore;
  /** Where files are written before they are stored. */
  readonly workDir: string;
}

const ENDS_ITSELF: ReadonlySet<Dataset["state"]> = new Set(["running", "paused", "cancelling"]);

/** Whether there is nothing left to do but to say so. A pause has nothing to hold back then. */
export function isOver({ state, rows_pending, rows_running, retry_after }: Dataset): boolean {
  return rows_pending === 0 && rows_running === 0 && retry_after === null && ENDS_ITSELF.has(state);
}

/** False when it did not end after all: the turn is another one's, or rows are to be run once more. */
export async function finishDataset(turn: Turn, parts: FinishParts, signal: AbortSignal): Promise<boolean> {
  await storeResults(turn.dataset_id, parts, signal);
  return await parts.db.transaction(async (tx) => {
    const dataset = await lockMine(tx, turn);
    if (!dataset || !isOver(dataset)) return false;
    const { id: dataset_id, customer_id, webhook_url } = dataset;
    const state = dataset.state === "cancelling" ? "cancelled" : "completed";
    await tx.query(
      // Why it was called off, where nobody asked for it, stays to be read.
      `UPDATE datasets SET state = $2, finished_at = now(), pause_reason = NULL, needs_frames = NULL, resting_since = NULL,
                           message = CASE WHEN state = 'cancelling' THEN message END
        WHERE id = $1`,
      [dataset_id, state],
    );
    await tellWebhooks(tx, { customer_id, event: `dataset.${state}`, dataset_id, webhook_url });
    return true;
  });
}

/** Files of any length without holding them: written here first, because a blob is written whole or not at all. */
async function storeResults(id: DatasetId, { db, blobs, workDir }: FinishParts, signal: AbortSignal): Promise<void> {
  const parquet = { withLinks: false };
  const files = [
    { key: blobKeys.datasetResults(id, "jsonl"), pieces: resultsJsonl(resultPages(db, id)) },
    { key: blobKeys.datasetResults(id, "parquet"), pieces: resultsParquet(resultPages(db, id), parquet) },
    {
      key: blobKeys.datasetMetadata(id),
      pieces: resultsParquet(resultPages(db, id, { state: "succeeded" }), parquet),
    },
  ];
  const folder = await mkdtemp(join(workDir, "results-"));
  try {
    const path = join(folder, "file");
    for (const { key, pieces } of files) {
      const written = createWriteStream(path, { mode: 0o600 });
      await pipeline(Readable.from(pieces, { objectMode: false }), written, { signal });
      await blobs.putFile(key, path);
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
