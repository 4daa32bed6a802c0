/**
 * A named queue of typed jobs on BullMQ: the only face of BullMQ that the rest of the system sees, so that Redis
 * and PostgreSQL behave the same (test/queue/conformance.test.ts runs against both). Delivery is at least once.
 */
import type { JobId } from "#contract/ids.ts";
import type { Service } from "#platform/lifecycle.ts";

import type { Signals } from "./signals.ts";

/** `failed`: its handler threw, its data was invalid, or it was given up; kept for a day, so that the sweep sees it. */
export type JobState = "waiting" | "active" | "failed";

export interface JobQueue<Data> {
  readonly name: string;
  /** Idempotent by id: a job that exists in any state is left as it is. Lower `priority` runs first, 0 before all. */
  add(jobId: JobId, data: Data, options?: { readonly priority?: number }): Promise<void>;
  /** Null: never added, or done and removed. `data` is null when it is not valid for this version of the code. */
  find(jobId: JobId): Promise<{ readonly state: JobState; readonly data: Data | null } | null>;
  /** `waiting` includes prioritised and delayed jobs. */
  counts(): Promise<{ readonly waiting: number; readonly active: number; readonly failed: number }>;
  /** Removes a job that is not active; true when it was there. */
  remove(jobId: JobId): Promise<boolean>;
  /** Starts a consumer in this process. */
  consume(options: ConsumeOptions<Data>): Promise<Consumer>;
}

export interface ConsumeOptions<Data> {
  /** Jobs handled at once by this consumer. */
  readonly concurrency: number;
  /** Resolves: job done and removed. Throws: job failed, kept as `failed` for the sweep to see. */
  handle(job: ActiveJob<Data>): Promise<void>;
  /**
   * Whether the job may be what its workers died of; any may unless this says otherwise. One that only stood beside is
   * given up after more lost workers than two.
   */
  isSuspect?(data: Data): boolean;
  /**
   * A job that nobody will run: a worker died twice while holding it, or its data is invalid (`data` is then null).
   * Called by whichever consumer takes it next, before it becomes `failed`; again elsewhere if that one dies here.
   * A rejection is logged; the sweep covers the rest.
   */
  onGivenUp?(jobId: JobId, data: Data | null, reason: string): Promise<void>;
}

export interface ActiveJob<Data> {
  readonly id: JobId;
  readonly data: Data;
  /** How often a worker died while holding this job. */
  readonly stalledCount: number;
  /**
   * Puts the job back at once with new data, under the same id and stalled count; `handle` must return after it.
   * This consumer may take it again unless it is paused. Rejects when the job is no longer ours.
   */
  release(data: Data): Promise<void>;
  /** Changes its data in the queue, for whoever runs it after us. Rejects when the job is no longer ours. */
  remember(data: Data): Promise<void>;
  /**
   * False when another worker may have the job by now: this one was frozen, or out of the queue's reach, for longer
   * than its lock lasts, or was stopped. True renews the lock.
   */
  stillOurs(): Promise<boolean>;
}

export interface Consumer extends Service {
  /** Stops taking jobs; those in hand go on. */
  pause(): Promise<void>;
  /** Takes jobs again after `pause`. */
  resume(): Promise<void>;
  /**
   * Pauses, waits for the jobs in hand up to `graceMs`, then puts them back as `release` does, their data unchanged:
   * a worker that is told to stop has not died of them.
   */
  stop(graceMs?: number): Promise<void>;
  /** Rejects nothing, resolves when the consumer can no longer work (backend out of reach for long); for supervisors. */
  readonly broken: Promise<Error>;
}

/** Everything a process needs of the queue, on one backend. */
export interface QueueSystem extends Service {
  readonly backend: "redis" | "postgres";
  /** `parse` throws on what is not a valid job. Opening a name again is cheap. */
  open<Data>(name: string, parse: (value: unknown) => Data): JobQueue<Data>;
  readonly signals: Signals;
}
