/** An inference worker that answers at once: takes jobs off the real queue and reports as a real one does, without an engine. */
import { randomUUID } from "node:crypto";

import type { BlobStore } from "#blobs/blob-store.ts";
import { blobKeys, type Outcome, type PredictJob } from "#contract/jobs.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { ActiveJob, QueueSystem } from "#queue/job-queue.ts";
import { predictQueue, settlementQueue } from "#queue/queues.ts";
import { jobIdOf, type RolloutId } from "#contract/ids.ts";

/** `outcomeOf`: how a job ends, with its frames; null succeeds. `concurrency`: jobs of a lane at once. */
export async function startInstantWorker(options: {
  readonly queues: QueueSystem;
  readonly blobs: BlobStore;
  readonly model: string;
  readonly outcomeOf: (job: PredictJob) => Outcome | null;
  readonly concurrency?: number;
}): Promise<Service> {
  const { queues, blobs, model, outcomeOf, concurrency = 4 } = options;

  async function succeed(job: PredictJob): Promise<Outcome> {
    const run = randomUUID();
    const video_keys: string[] = [];
    for (let candidate = 0; candidate < job.k; candidate++) {
      const key = blobKeys.video(job.rollout_id, job.attempt, run, candidate);
      await blobs.put(key, Buffer.from("a video"));
      video_keys.push(key);
    }
    const result = {
      video_keys,
      frames: job.k * (job.actions_per_candidate + 1),
      timings: { engine_wall_ms: 1, fetch_ms: 1, encode_ms: 1, total_ms: 3 },
    };
    await blobs.put(blobKeys.result(job.rollout_id, job.attempt), Buffer.from(JSON.stringify(result)));
    return { kind: "succeeded", result };
  }

  async function handle({ data: job }: ActiveJob<PredictJob>): Promise<void> {
    const outcome = outcomeOf(job) ?? (await succeed(job));
    const { rollout_id, attempt } = job;
    const id = jobIdOf(rollout_id as RolloutId, attempt); // the job's schema has the same pattern
    await settlementQueue(queues).add(id, { rollout_id, attempt, outcome });
  }

  const lanes = ["realtime", "bulk"] as const;
  const consumers = await Promise.all(
    lanes.map((lane) => predictQueue(queues, model, lane).consume({ concurrency, handle })),
  );
  return {
    async stop() {
      await Promise.all(consumers.map((consumer) => consumer.stop()));
    },
  };
}
