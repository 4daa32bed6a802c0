/**
 * The inference worker: takes predict jobs, has them run, and tells settlement how each ended. What it must get right
 * is the order (videos, then `result.json`, then the settlement job, then the predict job is done) and who pays for an
 * engine fault: the jobs that were in the engine run once more, each alone; what fails alone, fails.
 */

import { Compile } from "typebox/compile";

import { type BlobStore, BlobNotFound } from "#blobs/blob-store.ts";
import type { JobId } from "#contract/ids.ts";
import { blobKeys, type FailureCode, type Outcome, type PredictJob, RolloutResult } from "#contract/jobs.ts";
import type { Manifest } from "#contract/manifest.ts";
import type { Clock } from "#platform/clock.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";
import type { ActiveJob, QueueSystem } from "#queue/job-queue.ts";
import { predictQueue, settlementQueue } from "#queue/queues.ts";

import { createAdmission } from "./admission.ts";
import { type Engine, EngineFault, EngineUnavailable } from "./engine/engine.ts";
import { BadInput } from "./inputs.ts";
import type { WorkerMetrics } from "./metrics.ts";
import { type EndReason, runRolloutJob } from "./rollout-job.ts";
import { createSlots } from "#platform/slots.ts";
import { createWorkDir } from "#platform/work-dir.ts";

/** Progress is a hint for people who watch; more often than this nobody sees. */
const PROGRESS_INTERVAL_MS = 250;
/** After an engine fault: to put back or settle what is in hand. Encodings under way may finish. */
const FAULT_GRACE_MS = 10_000;
const DRAIN_GRACE_MS = 30_000;
/** Node's timers end at 2^31 − 1 ms; a deadline beyond is not watched here. */
const TIMER_MAX_MS = 2 ** 31 - 1;

export interface InferenceWorkerOptions {
  readonly manifest: Manifest;
  readonly queues: QueueSystem;
  readonly blobs: BlobStore;
  /** Warm, and this worker's alone; stopped by whoever started it. */
  readonly engine: Engine;
  readonly ffmpegPath: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: WorkerMetrics;
}

export interface InferenceWorker extends Service {
  /** Takes no more jobs, finishes those in hand within `graceMs`; the rest runs elsewhere. */
  stop(graceMs?: number): Promise<void>;
  /** Resolves when this process has to be replaced, after the jobs in hand have been seen to. */
  readonly failed: Promise<Error>;
}

export async function startInferenceWorker(options: InferenceWorkerOptions): Promise<InferenceWorker> {
  const { manifest, queues, blobs, engine, clock, log, metrics } = options;
  const samplesMax = manifest.engine.max_batch_samples;
  const predictions = predictQueue(queues, manifest.slug);
  const settlements = settlementQueue(queues);
  const workDir = await createWorkDir("videos");
  const parts = { ...options, workDir: workDir.path, encoderSlots: createSlots(samplesMax) };
  const admission = createAdmission({
    samplesMax,
    pause: () => tellConsumer("pause"),
    resume: () => tellConsumer("resume"),
  });
  const inHand = new Set<{ readonly rolloutId: string; readonly ending: AbortController }>();

  async function tellConsumer(what: "pause" | "resume"): Promise<void> {
    try {
      // The first job may come while the consumer is still starting.
      await (await consuming)[what]();
    } catch (error) {
      log.error({ err: error }, `could not ${what} taking jobs`);
    }
  }

  async function settle(id: JobId, job: PredictJob, outcome: Outcome): Promise<void> {
    await settlements.add(id, { rollout_id: job.rollout_id, attempt: job.attempt, outcome });
    metrics.jobEnded(outcome.kind);
    if (outcome.kind === "succeeded") metrics.timed(outcome.result.timings);
    log.info({ job: id, outcome: outcome.kind }, "rollout ended");
  }

  async function handle(job: ActiveJob<PredictJob>): Promise<void> {
    const ending = new AbortController();
    const end = (reason: EndReason) => ending.abort(reason);
    const untilDeadlineMs = Math.max(0, job.data.deadline_ms - clock.now());
    const deadline = setTimeout(end, Math.min(untilDeadlineMs, TIMER_MAX_MS), "expired");
    // Before the first wait, or a cancellation that comes meanwhile is lost.
    const held = { rolloutId: job.data.rollout_id, ending };
    inHand.add(held);
    admission.came();
    try {
      await settleOrRun(job, ending.signal);
    } finally {
      admission.gone();
      clearTimeout(deadline);
      inHand.delete(held);
    }
  }

  async function settleOrRun(job: ActiveJob<PredictJob>, signal: AbortSignal): Promise<void> {
    // A worker died between the result and the message about it: what is paid for and made is not made again.
    const earlier = await findResult(blobs, job.data);
    if (earlier) return settle(job.id, job.data, { kind: "succeeded", result: earlier });

    if (isTooLateToBegin(job)) {
      if (await job.stillOurs()) await settle(job.id, job.data, { kind: "expired" });
      return;
    }

    const place = { samples: job.data.k, alone: job.data.alone || job.stalledCount > 0 };
    if ((await admission.enter(place)) === "put_back") return putBack(job, job.data, "put_back");
    try {
      if (place.alone && !job.data.begun_alone) await job.remember({ ...job.data, begun_alone: true });
      await run(job, place.alone, signal);
    } finally {
      admission.leave(place);
    }
  }

  /** What has run before began in time. */
  function isTooLateToBegin({ data, stalledCount }: ActiveJob<PredictJob>): boolean {
    return data.start_by_ms !== undefined && clock.now() > data.start_by_ms && stalledCount === 0 && !data.alone;
  }

  async function run(job: ActiveJob<PredictJob>, alone: boolean, signal: AbortSignal): Promise<void> {
    const { id, data } = job;
    let outcome: Outcome;
    try {
      outcome = await runRolloutJob({ id, job: data, alone, signal, onProgress: progressOf(data.rollout_id) }, parts);
    } catch (error) {
      log.warn({ err: error, job: id, alone }, "an attempt failed");
      if (error instanceof EngineUnavailable) return putBack(job, data, "put_back");
      if (error instanceof EngineFault && !alone) return putBack(job, { ...data, alone: true }, "retried_alone");
      outcome = failureOf(error);
    }
    // A success is one wherever it was made. Anything else must not overrule the worker that has the job by now.
    if (outcome.kind !== "succeeded" && !(await job.stillOurs())) {
      log.warn({ job: id, outcome: outcome.kind }, "not reported: the job is no longer ours");
      return metrics.jobEnded("lost");
    }
    await settle(id, data, outcome);
  }

  async function putBack(job: ActiveJob<PredictJob>, data: PredictJob, end: "put_back" | "retried_alone") {
    await job.release(data);
    metrics.jobEnded(end);
  }

  /** Publishes the number of frames done, at most so often; a signal lost or left out costs nothing. */
  function progressOf(rolloutId: string): (frames: number) => void {
    let publishedAt = Number.NEGATIVE_INFINITY;
    return (frames) => {
      const now = clock.now();
      if (now - publishedAt < PROGRESS_INTERVAL_MS) return;
      publishedAt = now;
      void queues.signals.publish({ kind: "progress", rollout_id: rolloutId, frames });
    };
  }

  const endCancelSignals = await queues.signals.subscribe(["cancel"], (signal) => {
    if (signal.kind !== "cancel") return;
    for (const { rolloutId, ending } of inHand) if (rolloutId === signal.rollout_id) ending.abort("cancelled");
  });

  const consuming = predictions.consume({
    // Each job has at least one sample. Those that do not fit yet wait in `admission`.
    concurrency: samplesMax,
    handle,
    // A worker's death counts against all that it holds; who of them was it shows when each runs alone.
    isSuspect: ({ begun_alone }) => begun_alone ?? false,
    async onGivenUp(id, data, reason) {
      if (data === null) return; // not a job of ours; the sweep settles what its id names
      log.error({ job: id, reason }, "given up");
      const earlier = await findResult(blobs, data);
      await settle(
        id,
        data,
        earlier
          ? { kind: "succeeded", result: earlier }
          : failed("engine_failed", "The worker that ran this rollout died twice."),
      );
    },
  });

  const consumer = await consuming;

  async function afterFault(): Promise<Error> {
    const fault = await engine.failed;
    admission.close();
    await consumer.stop(FAULT_GRACE_MS);
    return fault;
  }

  let stopping: Promise<void> | undefined;
  async function stop(graceMs: number): Promise<void> {
    admission.close();
    await consumer.stop(graceMs);
    await endCancelSignals();
    await workDir.stop();
  }

  return {
    failed: Promise.race([afterFault(), consumer.broken]),
    stop: (graceMs = DRAIN_GRACE_MS) => (stopping ??= stop(graceMs)),
  };
}

const resultSchema = Compile(RolloutResult);

/** The result that an earlier run of this attempt left, or null. */
async function findResult(blobs: BlobStore, job: PredictJob): Promise<RolloutResult | null> {
  try {
    const body = await blobs.get(blobKeys.result(job.rollout_id, job.attempt));
    return resultSchema.Parse(JSON.parse(body.toString("utf8")));
  } catch (error) {
    if (error instanceof BlobNotFound) return null;
    throw error;
  }
}

/** What the customer is told; the log has the rest. */
function failureOf(error: unknown): Outcome {
  if (error instanceof BadInput) return failed("bad_input", error.message);
  if (error instanceof EngineFault) {
    return error.code === "engine_timeout"
      ? failed("engine_timeout", "The engine did not get through this rollout in time, also when it ran alone.")
      : failed("engine_failed", "The engine failed on this rollout, also when it ran alone.");
  }
  return failed("internal", "The worker could not finish this rollout.");
}

function failed(code: FailureCode, message: string): Outcome {
  return { kind: "failed", code, message, frames_delivered: 0 };
}
