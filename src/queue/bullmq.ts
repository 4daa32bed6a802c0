/** The port of job-queue.ts on BullMQ, for either backend: postgres.ts and redis.ts bring connections and signals. */
import { type BackendFactory, type IQueueBackend, Queue } from "bullmq";

import type { Service } from "#platform/lifecycle.ts";
import type { Log } from "#platform/log.ts";

import { settlesWithin } from "#platform/bounded.ts";
import { startConsumer } from "./consumer.ts";
import type { Consumer, JobQueue, JobState, QueueSystem } from "./job-queue.ts";
import type { Signals } from "./signals.ts";
import { throttledWarning } from "./throttled-warning.ts";

/** What a backend brings. `Connection` is a `pg.Pool` or an ioredis client. */
export interface BullBackend<Connection> {
  readonly name: QueueSystem["backend"];
  readonly factory: BackendFactory<IQueueBackend, Connection>;
  /** For adding and looking: a command fails after a bounded time. */
  readonly producer: Connection;
  /** For workers: on Redis its commands are retried for ever, as BullMQ demands. */
  readonly consumer: Connection;
  readonly signals: Signals & Service;
  /** Ends the connections, those of the signals excepted. */
  close(): Promise<void>;
}

/** Long enough for the sweep and for a person to look. */
const FAILED_KEPT_S = 24 * 3600;
/** BullMQ's event log, which we never read (it is lossy): only as long as the trimming needs. */
const EVENTS_KEPT = 500;
/** A backend that does not answer must not hold the process. */
const CLOSE_TIMEOUT_MS = 2_000;

/**
 * On every job and worker. No retries: the retry policy is ours, by attempt and job id. A done job is removed at once,
 * because its state lives in our tables (and retention by count deadlocks on PostgreSQL).
 */
const JOB_OPTIONS = {
  attempts: 1,
  removeOnComplete: true,
  removeOnFail: { age: FAILED_KEPT_S },
  stackTraceLimit: 5,
} as const;

const STATE_OF: Readonly<Record<string, JobState>> = {
  waiting: "waiting",
  prioritized: "waiting",
  delayed: "waiting",
  active: "active",
  failed: "failed",
};

export function createBullQueues<Connection>(backend: BullBackend<Connection>, log: Log): QueueSystem {
  const openQueue = (name: string) => {
    const queue = new Queue(
      name,
      { connection: backend.producer, streams: { events: { maxLen: EVENTS_KEPT } }, defaultJobOptions: JOB_OPTIONS },
      backend.factory,
    );
    queue.on("error", throttledWarning(log.child({ queue: name }), "queue error"));
    return queue;
  };
  const queues = new Map<string, ReturnType<typeof openQueue>>();
  const consumers = new Set<Consumer>();
  let stopping: Promise<void> | undefined;

  function open<Data>(name: string, parse: (value: unknown) => Data): JobQueue<Data> {
    if (stopping !== undefined) throw new Error(`queue ${name} opened after the queues were stopped`);
    const queue = queues.get(name) ?? openQueue(name);
    queues.set(name, queue);
    return {
      name,
      async add(jobId, data, { priority = 0 } = {}) {
        await queue.add(name, data, { jobId, priority });
      },
      async find(jobId) {
        const job = await queue.getJob(jobId);
        // Asked for separately, so a job that ends between the two questions counts as done.
        const state = job === undefined ? undefined : STATE_OF[await job.getState()];
        return job === undefined || state === undefined ? null : { state, data: readable(parse, job.data) };
      },
      async counts() {
        const { waiting, prioritized, delayed, paused, active, failed } = await queue.getJobCounts();
        return {
          waiting: (waiting ?? 0) + (prioritized ?? 0) + (delayed ?? 0) + (paused ?? 0),
          active: active ?? 0,
          failed: failed ?? 0,
        };
      },
      async remove(jobId) {
        // On Redis, BullMQ says that it removed what was never there.
        return (await queue.getJob(jobId)) !== undefined && (await queue.remove(jobId)) === 1;
      },
      async consume(options) {
        const consumer = await startConsumer({ name, backend, parse, options, log: log.child({ queue: name }) });
        consumers.add(consumer);
        return consumer;
      },
    };
  }

  async function stopAll(): Promise<void> {
    await Promise.allSettled([...consumers].map((consumer) => consumer.stop()));
    const parts = [backend.signals.stop(), ...[...queues.values()].map((queue) => queue.close())];
    const closed = Promise.allSettled(parts).then(() => backend.close());
    if (!(await settlesWithin(CLOSE_TIMEOUT_MS, closed))) {
      log.warn({ timeout_ms: CLOSE_TIMEOUT_MS }, "the queue's connections did not close in time");
    }
  }

  return {
    backend: backend.name,
    open,
    signals: backend.signals,
    stop: () => (stopping ??= stopAll()),
  };
}

function readable<Data>(parse: (value: unknown) => Data, value: unknown): Data | null {
  try {
    return parse(value);
  } catch {
    // Callers decide by the state alone; the consumer that meets this job logs why it is invalid.
    return null;
  }
}
