/**
 * One BullMQ Worker behind the Consumer port. What BullMQ leaves to us:
 * - giving up: our processor decides by the stalled count and reports before the job becomes `failed`, so that no
 *   report is lost with a process (BullMQ's own limit would report by an event, in memory);
 * - a fetch under way while pausing: BullMQ still hands that job over, so the processor puts it straight back; and a wait
 *   for jobs ends in one more fetch, pause or not, so the stop shuts a gate before it puts its jobs back;
 * - a lock lost while its holder lives (the backend was away for longer than it lasts): BullMQ hands the same job to the
 *   same process a second time, which goes on with the run it has, under the new lock;
 * - a bounded stop: `worker.close()` waits for a hung handler for ever, or leaves its job to be counted as stalled.
 */
import { DelayedError, type Job, UnrecoverableError, Worker } from "bullmq";

import type { JobId } from "#contract/ids.ts";
import type { Log } from "#platform/log.ts";

import { watchBackend } from "./backend-watch.ts";
import { settlesWithin } from "#platform/bounded.ts";
import type { BullBackend } from "./bullmq.ts";
import { gateFetches } from "./fetch-gate.ts";
import type { ConsumeOptions, Consumer } from "./job-queue.ts";
import { throttledWarning } from "./throttled-warning.ts";

/**
 * A dead worker's job runs again after about the lock's rest and one check, at most lock + 4 × interval (a check that
 * comes a moment early is skipped). Every worker of a queue must agree on them.
 */
const LOCK_MS = 5_000;
const STALLED_INTERVAL_MS = 1_500;
/** Three tries at renewing before a lock runs out. */
const LOCK_RENEW_MS = 1_500;
/** A job runs again after its first lost worker; after the second it is given up. */
const STALLED_MAX = 1;
/** One that only stood beside others each time (ConsumeOptions.isSuspect) is given up after one more than this. */
const STALLED_BYSTANDER_MAX = 4;
/** When even reporting a given-up job kills its process until it has been lost this often, BullMQ fails it without a report. */
const STALLED_BACKSTOP = 8;
/** Upper bound of the wait for a job whose wake-up was lost; NOTIFY and BZPOPMIN wake at once. */
const DRAIN_DELAY_S = 5;
/** After a refused connection (BullMQ's own default is 15 s). */
const RETRY_DELAY_MS = 1_000;

/** Together with the closing of connections below the 10 s that a service may take to stop. */
const GRACE_MS = 4_000;
/** For a backend that answers this takes milliseconds. */
const PUT_BACK_TIMEOUT_MS = 1_500;
const CLOSE_TIMEOUT_MS = 2_000;
const PROBE_INTERVAL_MS = 5_000;
/** Out of reach for this long: a fresh process has better chances than this one. */
const BROKEN_AFTER_MS = 60_000;

/** BullMQ's proof that the job is ours; replaced when we lose a lock and get another. */
interface Lock {
  token: string;
}
interface Run {
  readonly job: Job;
  readonly lock: Lock;
  readonly ended: Promise<void>;
}

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
  const inHand = new Map<JobId, Run>();

  async function giveUp(id: JobId, data: Data | null, reason: string): Promise<never> {
    log.error({ job: id, reason }, "job given up");
    try {
      await options.onGivenUp?.(id, data, reason);
    } catch (error) {
      log.error({ err: error, job: id }, "could not report a given-up job; the sweep will find it");
    }
    throw new UnrecoverableError(reason);
  }

  async function run(id: JobId, job: Job, lock: Lock): Promise<void> {
    async function letGoOf(): Promise<void> {
      // Before it goes: this very consumer may take it again at once, and that is then another run of it.
      inHand.delete(id);
      await putBack(job, lock);
    }
    if (!taking) {
      await letGoOf();
      throw new DelayedError();
    }
    let data: Data;
    try {
      data = parse(job.data);
    } catch (error) {
      return giveUp(id, null, `invalid job data: ${error instanceof Error ? error.message : String(error)}`);
    }
    const stalledMax = (options.isSuspect?.(data) ?? true) ? STALLED_MAX : STALLED_BYSTANDER_MAX;
    if (job.stalledCounter > stalledMax) {
      return giveUp(id, data, `its worker died ${job.stalledCounter} times`);
    }
    const stillOurs = async (): Promise<boolean> => !letGo && (await job.extendLock(lock.token, LOCK_MS)) > 0;
    async function remember(next: Data): Promise<void> {
      // updateData asks nobody whose job it is: without this, new data could reach a job that runs elsewhere by now.
      if (!(await stillOurs())) throw new Error(`job ${id} is no longer ours`);
      await job.updateData(next);
    }
    let released = false;
    await options.handle({
      id,
      data,
      stalledCount: job.stalledCounter,
      stillOurs,
      remember,
      async release(next) {
        await remember(next);
        await letGoOf();
        released = true;
      },
    });
    // Tells BullMQ that the job has been moved already.
    if (released || letGo) throw new DelayedError();
  }

  async function process(job: Job, token = ""): Promise<void> {
    const id = job.id as JobId; // every job of ours is added under a JobId
    const held = inHand.get(id);
    if (held !== undefined) {
      log.warn({ job: id }, "lost the lock of a job that is running, and got it back");
      held.lock.token = token;
      return held.ended;
    }
    const lock: Lock = { token };
    const ended = run(id, job, lock);
    inHand.set(id, { job, lock, ended });
    try {
      await ended;
    } finally {
      if (inHand.get(id)?.lock === lock) inHand.delete(id);
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
  const fetches = gateFetches(worker.getBackend());
  worker.on("error", throttledWarning(log, "queue worker error"));
  worker.on("failed", (job, error) => log.warn({ job: job?.id, reason: error.message }, "job failed"));
  worker.on("stalled", (jobId) => log.warn({ job: jobId }, "a worker died or froze while holding this job"));

  const watch = watchBackend({
    probe: () => worker.getBackend().hasQueueMetaField("version"),
    intervalMs: PROBE_INTERVAL_MS,
    brokenAfterMs: BROKEN_AFTER_MS,
  });

  /** Never rejects: what cannot be put back has just ended, or becomes stalled. */
  async function putBackAll(): Promise<void> {
    const parts = [...inHand].map(async ([id, { job, lock }]) => {
      await putBack(job, lock).catch((error: unknown) => log.warn({ err: error, job: id }, "could not put back a job"));
    });
    await Promise.all(parts);
  }

  async function stop(graceMs: number): Promise<void> {
    watch.stop();
    taking = false;
    await worker.pause(true);
    // From here on nothing is handed over, so nothing that is put back below comes back.
    await settlesWithin(PUT_BACK_TIMEOUT_MS, fetches.shut());
    const idle = await settlesWithin(graceMs, Promise.allSettled([...inHand.values()].map(({ ended }) => ended)));
    if (!idle) {
      log.warn({ jobs: inHand.size, grace_ms: graceMs }, "stopped with jobs in hand; they will run elsewhere");
      letGo = true;
      if (!(await settlesWithin(PUT_BACK_TIMEOUT_MS, putBackAll()))) {
        log.warn({ timeout_ms: PUT_BACK_TIMEOUT_MS }, "could not put back every job in time; they become stalled");
      }
    }
    if (!(await settlesWithin(CLOSE_TIMEOUT_MS, worker.close(!idle)))) {
      log.warn({ timeout_ms: CLOSE_TIMEOUT_MS }, "queue worker did not close in time");
    }
  }
  let stopping: Promise<void> | undefined;

  try {
    await worker.waitUntilReady();
  } catch (error) {
    await stop(0);
    throw error;
  }
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
async function putBack(job: Job, { token }: Lock): Promise<void> {
  await job.moveToDelayed(Date.now(), token);
}
