/**
 * A named queue of typed jobs on BullMQ: the only face of BullMQ that the rest of the system sees, so that Redis
 * and PostgreSQL behave the same (test/queue/conformance.test.ts runs against both). Delivery is at least once.
 */
import type { JobId } from "#contract/ids.ts";
import type { Service } from "#platform/lifecycle.ts";

/**
 * `missing`: never added, or done and removed. `failed`: given up after its worker died twice, or its handler threw.
 */
export type JobState = "missing" | "waiting" | "active" | "failed" | "completed";

export interface JobQueue<Data> {
  readonly name: string;
  /** Idempotent by id: a job that exists in any state is left as it is. Lower `priority` runs first, 0 before all. */
  add(jobId: JobId, data: Data, options?: { readonly priority?: number }): Promise<void>;
  find(jobId: JobId): Promise<{ readonly state: JobState; readonly data: Data } | null>;
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
   * A job that this process will not run: its worker died a second time and BullMQ gave it up. Called in whichever
   * process notices, at least once while any consumer lives; the sweep covers the rest.
   */
  onGivenUp?(jobId: JobId, data: Data, reason: string): Promise<void>;
}

export interface ActiveJob<Data> {
  readonly id: JobId;
  readonly data: Data;
  /** How often a worker died while holding this job. */
  readonly stalledCount: number;
  /** Puts the job back at once with new data, for another worker to take; `handle` must return after it. */
  release(data: Data): Promise<void>;
}

export interface Consumer extends Service {
  /** Stops taking jobs; those in hand go on. */
  pause(): Promise<void>;
  /** Pauses, waits for the jobs in hand up to `graceMs`, then lets go of them (they become stalled elsewhere). */
  stop(graceMs?: number): Promise<void>;
  /** Rejects nothing, resolves when the consumer can no longer work (connection lost for good); for supervisors. */
  readonly broken: Promise<Error>;
}

/** Everything a process needs of the queue, on one backend. */
export interface QueueSystem extends Service {
  readonly backend: "redis" | "postgres";
  open<Data>(name: string, parse: (value: unknown) => Data): JobQueue<Data>;
  readonly signals: Signals;
}

/** `queued`: the scheduler has work. Others name one rollout. `progress` carries frames done as well. */
export type Signal =
  | { readonly kind: "queued" }
  | { readonly kind: "cancel"; readonly rollout_id: string }
  | { readonly kind: "finished"; readonly rollout_id: string }
  | { readonly kind: "progress"; readonly rollout_id: string; readonly frames: number };

/** Lossy by design: a lost signal costs latency, never correctness, because everyone who waits also polls. */
export interface Signals {
  /** Never rejects; a failed publish is logged. */
  publish(signal: Signal): Promise<void>;
  /** Resolves when the subscription is in force; returns its end. Survives a lost connection. */
  subscribe(kinds: readonly Signal["kind"][], handler: (signal: Signal) => void): Promise<() => Promise<void>>;
}
