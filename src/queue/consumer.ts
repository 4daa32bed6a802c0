/**
 * One BullMQ Worker behind the Consumer port. What BullMQ leaves to us:
 * - giving up: our processor decides by the stalled count and reports before the job becomes `failed`, so that no
 *   report is lost with a process (BullMQ's own limit would report by an event, in memory);
 * - a fetch under way while pausing: BullMQ still hands that job over, so the processor puts it straight back;
 * - a bounded stop: `worker.close()` waits for a hung handler for ever.
 */
import { DelayedError, type Job, UnrecoverableError, Worker } from "bullmq";

import type { JobId } from "#contract/ids.ts";
import type { Log } from "#platform/log.ts";

import { watchBackend } from "./backend-watch.ts";
import { settlesWithin } from "./bounded.ts";
import type { BullBackend } from "./bullmq.ts";
import type { ConsumeOptions, Consumer } from "./job-queue.ts";
import { throttledWarning } from "./throttled-warning.ts";

/** Recovery after a SIGKILL takes at most about lock + 2 × stalled interval = 9 s; every worker of a queue must agree. */
const LOCK_MS = 5_000;
const STALLED_INTERVAL_MS = 2_000;
/** Three tries at renewing before a lock runs out. */
const LOCK_RENEW_MS = 1_500;
/** A job runs again after its first lost worker; after the second it is given up. */
const STALLED_MAX = 1;
/** When even reporting a given-up job kills its process this often, BullMQ fails it without a report. */
const STALLED_BACKSTOP = 5;
/** Upper bound of the wait for a job whose wake-up was lost; NOTIFY and BZPOPMIN wake at once. */
const DRAIN_DELAY_S = 5;
/** After a refused connection (BullMQ's own default is 15 s). */
const RETRY_DELAY_MS = 1_000;

const GRACE_MS = 10_000;
const CLOSE_TIMEOUT_MS = 5_000;
const PROBE_INTERVAL_MS = 5_000;
/** Out of reach for this long: a fresh process has better chances than this one. */
const BROKEN_AFTER_MS = 60_000;

export async function startConsumer<Connection, Data>({
  name,
  backend,
  parse,
  options,
  log,
}: {
  readonly name: string;
  readonly backend: BullBackend<Connection>;
  readonly parse: (value: unknown) => Data;
  readonly options: ConsumeOptions<Data>;
  readonly log: Log;
}): Promise<Consumer> {
  let taking = true;
  /** Stopped without waiting for the jobs in hand: BullMQ answers nothing any more. */
  let letGo = false;
  const inHand = new Set<Promise<void>>();

  async function giveUp(id: JobId, data: Data | null, reason: string): Promise<never> {
    log.error({ job: id, reason }, "job given up");
    try {
      await options.onGivenUp?.(id, data, reason);
    } catch (error) {
      log.error({ err: error, job: id }, "could not report a given-up job; the sweep will find it");
    }
    throw new UnrecoverableError(reason);
  }

  async function run(job: Job, token: string): Promise<void> {
    const id = job.id as JobId; // every job of ours is added under a JobId
    if (!taking) {
      await putBack(job, token);
      throw new DelayedError();
    }
    let data: Data;
    try {
      data = parse(job.data);
    } catch (error) {
      return giveUp(id, null, `invalid job data: ${error instanceof Error ? error.message : String(error)}`);
    }
    if (job.stalledCounter > STALLED_MAX) {
      return giveUp(id, data, `its worker died ${job.stalledCounter} times`);
    }
    let released = false;
    await options.handle({
      id,
      data,
      stalledCount: job.stalledCounter,
      async release(next) {
        // updateData asks nobody whose job it is: without this, new data could reach a job that runs elsewhere by now.
        if (letGo || !(await job.extendLock(token, LOCK_MS))) throw new Error(`job ${id} is no longer ours`);
        await job.updateData(next);
        await putBack(job, token);
        released = true;
      },
    });
    // Tells BullMQ that the job has been moved already.
    if (released) throw new DelayedError();
  }

  async function process(job: Job, token = ""): Promise<void> {
    const running = run(job, token);
    const settled = running.catch(() => undefined); // BullMQ gets the rejection; here only the end counts
    inHand.add(settled);
    try {
      await running;
    } finally {
      inHand.delete(settled);
    }
  }

  const worker = new Worker(
    name,
    process,
    {
      connection: backend.consumer,
      concurrency: options.concurrency,
      lockDuration: LOCK_MS,
      lockRenewTime: LOCK_RENEW_MS,
      stalledInterval: STALLED_INTERVAL_MS,
      maxStalledCount: STALLED_BACKSTOP,
      drainDelay: DRAIN_DELAY_S,
      runRetryDelay: RETRY_DELAY_MS,
    },
    backend.factory,
  );
  worker.on("error", throttledWarning(log, "queue worker error"));
  worker.on("failed", (job, error) => log.warn({ job: job?.id, reason: error.message }, "job failed"));
  worker.on("stalled", (jobId) => log.warn({ job: jobId }, "a worker died or froze while holding this job"));

  const watch = watchBackend({
    probe: () => worker.getBackend().hasQueueMetaField("version"),
    intervalMs: PROBE_INTERVAL_MS,
    brokenAfterMs: BROKEN_AFTER_MS,
  });

  async function stop(graceMs: number): Promise<void> {
    watch.stop();
    taking = false;
    await worker.pause(true);
    const idle = await settlesWithin(graceMs, Promise.all(inHand));
    if (!idle) {
      log.warn({ jobs: inHand.size, grace_ms: graceMs }, "stopped with jobs in hand; they will run elsewhere");
      letGo = true;
      // A forced close leaves a blocked fetch waiting for its own timeout.
      await settlesWithin(CLOSE_TIMEOUT_MS, worker.getBackend().disconnectBlocking(false));
    }
    if (!(await settlesWithin(CLOSE_TIMEOUT_MS, worker.close(!idle)))) {
      log.warn({ timeout_ms: CLOSE_TIMEOUT_MS }, "queue worker did not close in time");
    }
  }
  let stopping: Promise<void> | undefined;

  await worker.waitUntilReady();
  return {
    broken: watch.broken,
    async pause() {
      taking = false;
      await worker.pause(true);
    },
    async resume() {
      if (stopping !== undefined) return;
      taking = true;
      await worker.resume();
    },
    stop: (graceMs = GRACE_MS) => (stopping ??= stop(graceMs)),
  };
}

/** For another worker to take at once: "delayed until now" wakes one on both backends, moveToWait does not on Redis. */
async function putBack(job: Job, token: string): Promise<void> {
  await job.moveToDelayed(Date.now(), token);
}
