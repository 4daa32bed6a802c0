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
import type { Lane } from "#contract/rollout.ts";
import type { Clock } from "#platform/clock.ts";
import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";
import type { ActiveJob, Consumer, QueueSystem } from "#queue/job-queue.ts";
import { predictQueue, settlementQueue } from "#queue/queues.ts";

import { createAdmission } from "./admission.ts";
import { type Engine, EngineFault, EngineUnavailable } from "./engine/engine.ts";
import { BadInput } from "./inputs.ts";
import type { WorkerMetrics } from "./metrics.ts";
import { type Attempt, type EndReason, runRolloutJob } from "./rollout-job.ts";
import { type Scorer, ScorerFailed } from "./score/scorer.ts";
import { createSlots } from "#platform/slots.ts";
import { createWorkDir } from "#platform/work-dir.ts";
import { startEncoder } from "./video/encoder.ts";

/** Progress is a hint for people who watch; more often than this nobody sees. */
const PROGRESS_INTERVAL_MS = 250;
/** After an engine fault: to put back or settle what is in hand. Encodings under way may finish. */
const FAULT_GRACE_MS = 10_000;
const DRAIN_GRACE_MS = 30_000;
/**
 * Jobs of a lane in hand beside those in the engine, as a part of them: their inputs are being fetched, or their videos
 * finished and stored. Every one more is one that an idle worker might have begun.
 */
const BESIDE_ENGINE = 0.25;
const LANES = ["realtime", "bulk"] as const satisfies readonly Lane[];
/** Node's timers end at 2^31 − 1 ms; a deadline beyond is not watched here. */
const TIMER_MAX_MS = 2 ** 31 - 1;

export interface InferenceWorkerOptions {
  readonly manifest: Manifest;
  readonly queues: QueueSystem;
  readonly blobs: BlobStore;
  /** Warm, and this worker's alone; stopped by whoever started it. */
  readonly engine: Engine;
  /** Stopped by whoever started it. */
  readonly scorer: Scorer;
  readonly ffmpegPath: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: WorkerMetrics;
  /** Called with the number of jobs in its hands whenever that changes. */
  readonly onJobs?: (count: number) => void;
}

export interface InferenceWorker extends Service {
  /**
   * Takes no more jobs, and resolves when those in hand are done, however long that is; `stop` may follow
   * before.
   */
  drain(): Promise<void>;
  /** Takes no more jobs, finishes those in hand within `graceMs`; the rest runs elsewhere. */
  stop(graceMs?: number): Promise<void>;
  /** Resolves when this process has to be replaced, after the jobs in hand have been seen to. */
  readonly failed: Promise<Error>;
}

export async function startInferenceWorker(options: InferenceWorkerOptions): Promise<InferenceWorker> {
  const { manifest, queues, blobs, engine, ffmpegPath, clock, log, metrics, onJobs } = options;
  const { samplesMax } = engine;
  const settlements = settlementQueue(queues);
  const workDir = await createWorkDir("videos");
  const encoderSlots = { realtime: createSlots(samplesMax), bulk: createSlots(samplesMax) };
  const encoder = startEncoder({ ffmpegPath, log });
  const parts = { ...options, encoder, workDir: workDir.path, samplesMax, encoderSlots };
  let draining = false;
  const admission = createAdmission({
    samplesMax,
    pause: () => tellConsumers("pause"),
    // After a job that ran alone. A worker that is to go takes none all the same.
    resume: async () => (draining ? undefined : tellConsumers("resume")),
  });
  const inHand = new Set<{ readonly rolloutId: string; readonly ending: AbortController }>();
  const idle = Promise.withResolvers<void>();

  async function tellConsumers(what: "pause" | "resume"): Promise<void> {
    try {
      // The first job may come while the consumers are still starting.
      await Promise.all((await consuming).map((consumer) => consumer[what]()));
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

  /** `lane`: of the queue that it came by. An older version left bulk jobs among the realtime ones; they run as such. */
  async function handle(job: ActiveJob<PredictJob>, lane: Lane): Promise<void> {
    const ending = new AbortController();
    const end = (reason: EndReason) => ending.abort(reason);
    const untilDeadlineMs = Math.max(0, job.data.deadline_ms - clock.now());
    const deadline = setTimeout(end, Math.min(untilDeadlineMs, TIMER_MAX_MS), "expired");
    // Before the first wait, or a cancellation that comes meanwhile is lost.
    const held = { rolloutId: job.data.rollout_id, ending };
    inHand.add(held);
    onJobs?.(inHand.size);
    admission.came();
    try {
      await settleOrRun(job, lane, ending.signal);
    } finally {
      admission.gone();
      clearTimeout(deadline);
      inHand.delete(held);
      onJobs?.(inHand.size);
      if (draining && inHand.size === 0) idle.resolve();
    }
  }

  async function settleOrRun(job: ActiveJob<PredictJob>, lane: Lane, signal: AbortSignal): Promise<void> {
    // A worker died between the result and the message about it: what is paid for and made is not made again.
    const earlier = await findResult(blobs, job.data);
    if (earlier) return settle(job.id, job.data, { kind: "succeeded", result: earlier });

    if (isTooLateToBegin(job)) {
      if (await job.stillOurs()) await settle(job.id, job.data, { kind: "expired" });
      return;
    }

    const { data } = job;
    const alone = data.alone || job.stalledCount > 0;
    const place = { lane, samples: data.k, alone };
    const attempt = { job: data, lane, alone, signal, onProgress: progressOf(data.rollout_id) };
    const turn = { take: () => admission.enter(place, signal), giveBack: () => admission.leave(place) };
    if (!alone) return run(job, { ...attempt, turn });

    // Even what reads its inputs could end the process, so it has the process from before its first step to its end.
    const verdict = await turn.take();
    if (verdict === "put_back") return putBack(job, data, "put_back");
    const taken = { take: () => Promise.resolve(verdict), giveBack: () => undefined };
    try {
      if (verdict === "run" && !data.begun_alone) await job.remember({ ...data, begun_alone: true });
      await run(job, { ...attempt, turn: taken });
    } finally {
      if (verdict === "run") turn.giveBack();
    }
  }

  /** What has run before began in time. */
  function isTooLateToBegin({ data, stalledCount }: ActiveJob<PredictJob>): boolean {
    return data.start_by_ms !== undefined && clock.now() > data.start_by_ms && stalledCount === 0 && !data.alone;
  }

  async function run(job: ActiveJob<PredictJob>, attempt: Attempt): Promise<void> {
    const { id, data } = job;
    const { alone } = attempt;
    let outcome: Outcome | "put_back";
    try {
      outcome = await runRolloutJob(attempt, parts);
    } catch (error) {
      log.warn({ err: error, job: id, alone }, "an attempt failed");
      if (error instanceof EngineUnavailable) return putBack(job, data, "put_back");
      if (error instanceof EngineFault && !alone) return putBack(job, { ...data, alone: true }, "retried_alone");
      outcome = failureOf(error);
    }
    if (outcome === "put_back") return putBack(job, data, "put_back");
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

  const consume = (lane: Lane): Promise<Consumer> =>
    predictQueue(queues, manifest.slug, lane).consume({
      // Each job has at least one sample. Those that do not fit yet wait in `admission`.
      concurrency: samplesMax + Math.ceil(samplesMax * BESIDE_ENGINE),
      handle: (job) => handle(job, lane),
      // A worker's death counts against all that it holds; who of them was it shows when each runs alone.
      isSuspect: ({ begun_alone }) => begun_alone ?? false,
      onGivenUp,
    });

  async function onGivenUp(id: JobId, data: PredictJob | null, reason: string): Promise<void> {
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
  }

  const consuming = Promise.all(LANES.map(consume));
  const consumers = await consuming;
  const stopConsumers = (graceMs: number) => Promise.all(consumers.map((consumer) => consumer.stop(graceMs)));

  async function afterFault(): Promise<Error> {
    const fault = await engine.failed;
    admission.close();
    await stopConsumers(FAULT_GRACE_MS);
    return fault;
  }

  async function drain(): Promise<void> {
    draining = true;
    // What a consumer is handed from here on it puts straight back.
    await tellConsumers("pause");
    if (inHand.size === 0) idle.resolve();
    await idle.promise;
  }

  let stopping: Promise<void> | undefined;
  async function stop(graceMs: number): Promise<void> {
    admission.close();
    await stopConsumers(graceMs);
    await endCancelSignals();
    await encoder.stop();
    await workDir.stop();
  }

  return {
    failed: Promise.race([afterFault(), ...consumers.map((consumer) => consumer.broken)]),
    drain,
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
  if (error instanceof ScorerFailed) return failed("internal", "The video was made, but could not be scored.");
  return failed("internal", "The worker could not finish this rollout.");
}

function failed(code: FailureCode, message: string): Outcome {
  return { kind: "failed", code, message, frames_delivered: 0 };
}
