/** Slow housekeeping: what is old enough to go. Bounded work a round. */
import { IDEMPOTENCY_KEPT_MS } from "#contract/limits.ts";
import type { BlobStore } from "#blobs/blob-store.ts";
import type { Clock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import type { Log } from "#platform/log.ts";
import { deleteOldPoolEvents } from "#pools/events.ts";
import { deleteDeadLeases } from "#rollouts/leases.ts";
import { deleteOldIdempotencyKeys, readOwners } from "#rollouts/sweep.ts";

import { type Loop, startLoop } from "#platform/loop.ts";
import { cleanDatasets } from "./datasets.ts";
import { isOrphan, ORPHAN_AGE_MS_MIN, partPrefix, rolloutIdOf } from "./orphans.ts";
import { deleteOutdatedFiles, deleteOutdatedUploads } from "./retention.ts";

const CLEAN_EVERY_MS = 15_000;
/** Long after the sweep has ended what their customers waited for. */
const DEAD_LEASE_KEPT_MS = 3_600_000;
const ROWS_PER_ROUND_MAX = 1_000;
/** Blobs of one part looked at in one round; a part larger than this is finished in its next turns. */
const BLOBS_PER_ROUND_MAX = 5_000;

export interface JanitorOptions {
  readonly db: Database;
  readonly blobs: BlobStore;
  readonly epoch: bigint;
  /** How long inputs and videos are kept after the end of their rollout, and uploads after they came. */
  readonly retentionMs: number;
  /** How long a dataset may wait for its owner. */
  readonly datasetIdleMs: number;
  readonly clock: Clock;
  readonly log: Log;
}

export function startJanitor(options: JanitorOptions): Loop {
  return startLoop({
    name: "clean",
    everyMs: CLEAN_EVERY_MS,
    log: options.log,
    run: async (signal) => {
      const { db, epoch, clock } = options;
      await deleteOldIdempotencyKeys(db, epoch, new Date(clock.now() - IDEMPOTENCY_KEPT_MS), ROWS_PER_ROUND_MAX);
      await deleteDeadLeases(db, DEAD_LEASE_KEPT_MS);
      await deleteOldPoolEvents(db, epoch, new Date(clock.now()), ROWS_PER_ROUND_MAX);
      await deleteOutdatedFiles(options, signal);
      await deleteOutdatedUploads(options, signal);
      await cleanDatasets(options, signal);
      // Counted by the clock, so that schedulers that come and go still get through all parts.
      await deleteOrphans(partPrefix(Math.floor(clock.now() / CLEAN_EVERY_MS)), options, signal);
    },
  });
}

/** Deletes the old blobs under `prefix` that no row names; how many. */
export async function deleteOrphans(
  prefix: string,
  { db, blobs, clock, log }: Pick<JanitorOptions, "db" | "blobs" | "clock" | "log">,
  signal: AbortSignal,
): Promise<number> {
  const oldest = clock.now() - ORPHAN_AGE_MS_MIN;
  const keysOf = new Map<string, string[]>();
  let looked = 0;
  for await (const blob of blobs.list(prefix)) {
    if (++looked > BLOBS_PER_ROUND_MAX || signal.aborted) break;
    const id = rolloutIdOf(blob.key);
    if (id === null || blob.modified_ms > oldest) continue;
    keysOf.set(id, [...(keysOf.get(id) ?? []), blob.key]);
  }
  if (keysOf.size === 0) return 0;

  const owners = new Map((await readOwners(db, [...keysOf.keys()])).map((row) => [row.id as string, row]));
  let deleted = 0;
  for (const [id, keys] of keysOf) {
    for (const key of keys.filter((key) => isOrphan(key, owners.get(id)))) {
      if (signal.aborted) return deleted;
      // A row of a dataset that could not be paid has its inputs written again, under the same keys, when it can.
      const blob = await blobs.info(key);
      if (blob === null || blob.modified_ms > oldest) continue;
      await blobs.delete(key);
      deleted += 1;
    }
  }
  if (deleted > 0) log.info({ prefix, deleted }, "deleted blobs that no rollout names");
  return deleted;
}
