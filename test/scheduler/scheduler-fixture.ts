/** What the scheduler's tests run on: a real database, the queue inside it, blobs in a folder, one small model. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { Registry } from "prom-client";

import { createFsBlobs } from "#blobs/fs.ts";
import type { BlobStore } from "#blobs/blob-store.ts";
import type { RolloutId } from "#contract/ids.ts";
import type { Manifest } from "#contract/manifest.ts";
import type { CreatedKey } from "#keys/keys.ts";
import { loadManifests } from "#platform/bundles.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { openQueues } from "#queue/open-queues.ts";
import type { Rollout } from "#rollouts/rollout.ts";
import { createSchedulerMetrics, type SchedulerMetrics } from "#scheduler/metrics.ts";

import { newCustomer } from "../support/ledger.ts";
import { createTestDatabase, silentLog, type TestDatabase } from "../support/postgres.ts";

export const MODEL = "pusht-small";

export interface Fixture {
  readonly database: TestDatabase;
  readonly queues: QueueSystem;
  readonly blobs: BlobStore;
  readonly models: readonly Manifest[];
  readonly metrics: SchedulerMetrics;
  readonly key: CreatedKey;
  read(id: RolloutId): Promise<Rollout & { readonly sweep_at: Date | null }>;
  end(): Promise<void>;
}

export async function openFixture(): Promise<Fixture> {
  const database = await createTestDatabase();
  const queues = await openQueues({ redis_url: undefined, database_url: database.url, migrate: true, log: silentLog });
  const folder = await mkdtemp(join(tmpdir(), "dream-scheduler-"));
  const models = (await loadManifests("models")).filter(({ slug }) => slug === MODEL);
  return {
    database,
    queues,
    blobs: createFsBlobs(folder),
    models,
    metrics: createSchedulerMetrics(new Registry()),
    key: await newCustomer(database.db),
    async read(id) {
      const [row] = await database.db.query<Rollout & { sweep_at: Date | null }>(
        "SELECT * FROM rollouts WHERE id = $1",
        [id],
      );
      if (!row) throw new Error(`no rollout ${id}`);
      return row;
    },
    async end() {
      await queues.stop();
      await database.drop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}
