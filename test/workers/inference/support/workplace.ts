/** Everything around an inference worker: a queue in a database of its own, a blob store, and someone who settles. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import sharp from "sharp";

import type { BlobStore } from "#blobs/blob-store.ts";
import { createFsBlobs } from "#blobs/fs.ts";
import { jobIdOf, type JobId, newRolloutId } from "#contract/ids.ts";
import { blobKeys, type Outcome, type PredictJob, type SettlementJob } from "#contract/jobs.ts";
import type { Manifest } from "#contract/manifest.ts";
import { loadManifests } from "#platform/bundles.ts";
import type { JobQueue, QueueSystem } from "#queue/job-queue.ts";
import { openQueues } from "#queue/open-queues.ts";
import { predictQueue, settlementQueue } from "#queue/queues.ts";
import { createTestDatabase, silentLog } from "#test/support/postgres.ts";

import { eventually } from "./eventually.ts";
import { TINY, writeTinyBundle } from "./tiny-bundle.ts";

interface JobOptions {
  /** One a candidate: every action of it has this value. */
  readonly actions?: readonly number[];
  readonly chunks?: number;
  readonly job?: Partial<PredictJob>;
}

export interface Workplace {
  readonly databaseUrl: string;
  readonly modelsDir: string;
  readonly bundleDir: string;
  readonly manifest: Manifest;
  readonly blobsDir: string;
  readonly blobs: BlobStore;
  readonly queues: QueueSystem;
  readonly predictions: JobQueue<PredictJob>;
  readonly bulkPredictions: JobQueue<PredictJob>;
  /** Writes the inputs of a rollout and returns its first job, not yet added. */
  prepare(options?: JobOptions): Promise<{ readonly id: JobId; readonly data: PredictJob }>;
  /** `prepare`, then add to the queue of its lane. */
  submit(options?: JobOptions): Promise<{ readonly id: JobId; readonly data: PredictJob }>;
  /** The outcome that settlement was told, waiting for it if need be. */
  outcomeOf(id: JobId, limitMs?: number): Promise<Outcome>;
  readonly settled: ReadonlyMap<JobId, SettlementJob>;
  /** Resolves at the next sign that a worker is dreaming this rollout: the frames it has so far. */
  progressOf(rolloutId: string): Promise<number>;
  stop(): Promise<void>;
}

/** On PostgreSQL's queue, or on Redis'; with a bundle that does nothing useful, or the one that is named. */
export async function createWorkplace({
  redisUrl,
  model = TINY,
}: { readonly redisUrl?: string; readonly model?: string } = {}): Promise<Workplace> {
  const dir = await mkdtemp(join(tmpdir(), "dream-engine-test-worker-"));
  const modelsDir = join(dir, "models");
  const blobsDir = join(dir, "blobs");
  const { bundleDir, manifest } = model === TINY ? await writeTinyBundle(modelsDir) : await bundleOf(model);
  const { height, width, chunk_size: chunkSize, action_dim: dims } = manifest.shapes;
  const database = await createTestDatabase();
  const queues = await openQueues({
    redis_url: redisUrl,
    database_url: database.url,
    migrate: redisUrl === undefined,
    log: silentLog,
  });
  const blobs = createFsBlobs(blobsDir);
  const predictions = predictQueue(queues, model, "realtime");
  const bulkPredictions = predictQueue(queues, model, "bulk");
  const settled = new Map<JobId, SettlementJob>();
  await settlementQueue(queues).consume({
    concurrency: 1,
    handle: async ({ id, data }) => void settled.set(id, data),
  });
  const framesDone = new Map<string, number>();
  await queues.signals.subscribe(["progress"], (signal) => {
    if (signal.kind === "progress") framesDone.set(signal.rollout_id, signal.frames);
  });
  let rollouts = 0;

  async function prepare({ actions = [1], chunks = 2, job = {} }: JobOptions = {}) {
    rollouts += 1;
    const rolloutId = newRolloutId((size) => Buffer.alloc(size, rollouts));
    const frame = sharp({ create: { width, height, channels: 3, background: { r: 200, g: 100, b: 50 } } });
    await blobs.put(blobKeys.frame(rolloutId), await frame.png().toBuffer());
    const count = chunks * chunkSize;
    const values = Float32Array.from(actions.flatMap((value) => Array.from({ length: count * dims }, () => value)));
    await blobs.put(blobKeys.actions(rolloutId), new Uint8Array(values.buffer));
    const data: PredictJob = {
      rollout_id: rolloutId,
      attempt: 1,
      model,
      lane: "realtime",
      frame_key: blobKeys.frame(rolloutId),
      actions_key: blobKeys.actions(rolloutId),
      k: actions.length,
      actions_per_candidate: count,
      params: { seed: "7", num_steps: 2, guidance: 0, prompt: "" },
      debited_mils: "25",
      deadline_ms: Date.now() + 600_000,
      alone: false,
      ...job,
    };
    return { id: jobIdOf(rolloutId, data.attempt), data };
  }

  return {
    databaseUrl: database.url,
    modelsDir,
    bundleDir,
    manifest,
    blobsDir,
    blobs,
    queues,
    predictions,
    bulkPredictions,
    settled,
    prepare,
    async submit(options) {
      const prepared = await prepare(options);
      await (prepared.data.lane === "bulk" ? bulkPredictions : predictions).add(prepared.id, prepared.data);
      return prepared;
    },
    outcomeOf: async (id, limitMs) => (await eventually(() => settled.get(id), limitMs)).outcome,
    progressOf(rolloutId) {
      framesDone.delete(rolloutId);
      return eventually(() => framesDone.get(rolloutId));
    },
    async stop() {
      await queues.stop();
      await database.drop();
      await rm(dir, { recursive: true, force: true });
    },
  };
}

async function bundleOf(model: string): Promise<{ readonly bundleDir: string; readonly manifest: Manifest }> {
  const manifest = (await loadManifests("models")).find(({ slug }) => slug === model);
  if (!manifest) throw new Error(`there is no bundle ${model}`);
  return { bundleDir: join("models", model), manifest };
}
