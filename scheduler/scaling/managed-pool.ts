/**
 * One pool whose workers are ours: looks about once a second and when work comes to nobody, writes down what it saw and
 * decided, then tells the fleet. What is written is fenced by the epoch, and what could not be written is not done either.
 */
import { recordPoolEvent } from "#pools/events.ts";
import { noteReady } from "#pools/gaps.ts";
import { addPoolHours, type PoolSeconds } from "#pools/hours.ts";
import { type Pool, writePool } from "#pools/pool.ts";
import { reasonText } from "#pools/reason.ts";
import { readPoolSettings } from "#pools/settings.ts";
import { lookAtPool } from "#pools/work.ts";
import { within } from "#platform/bounded.ts";
import { startLoop } from "#platform/loop.ts";
import { predictJobs } from "#queue/queues.ts";

import type { FleetDriver } from "./fleet/fleet.ts";
import { CALL_TIMEOUT_MS, LOOK_EVERY_MS, type PoolLoop, type PoolLoopParts } from "./pool-loop.ts";
import { look, type PoolMemory, type PoolTraits } from "./pool-look.ts";

/** However often work comes. */
const LOOK_EVERY_MS_MIN = 250;
/** Seconds of workers are added up in between; what a killed leader had not written is lost. */
const HOURS_EVERY_MS = 10_000;
/** Who wrote an event. */
const BY = "scheduler";

interface ManagedPoolParts {
  readonly driver: FleetDriver;
  readonly first: PoolMemory;
  /** Workers to keep for the time being. */
  readonly atLeast: () => number;
}

export function startManagedPool(
  traits: PoolTraits,
  { driver, first, atLeast }: ManagedPoolParts,
  { db, queues, epoch, scoredAtOnceMax, clock, log, metrics }: PoolLoopParts,
): PoolLoop {
  const { model, limits } = traits;
  const jobs = predictJobs(queues, model);
  let memory = first;
  /** Of the latest look whose row is written. */
  let latest: Pool | null = null;
  let since: Date | null = null;
  let hours: { readonly sinceMs: number; readonly seconds: PoolSeconds } | null = null;
  let lookedAtMs = Number.NEGATIVE_INFINITY;
  let wakeTimer: NodeJS.Timeout | undefined;

  async function run(signal: AbortSignal): Promise<void> {
    lookedAtMs = performance.now();
    const [workers, counts, work, settings] = await Promise.all([
      within(CALL_TIMEOUT_MS, `looking at the workers of ${model}`, driver.observe(model)),
      within(CALL_TIMEOUT_MS, "counting jobs", jobs.counts()),
      lookAtPool(db, model, { since, scoredAtOnceMax }),
      readPoolSettings(db),
    ]);
    const always_warm_workers = settings.find((row) => row.model === model)?.always_warm_workers ?? null;
    const nowMs = clock.now();
    const now = { ...traits, limits: { ...limits, minimum: Math.max(limits.minimum, atLeast()) } };
    const looked = look(memory, { workers, jobs: counts, work, always_warm_workers }, nowMs, now);
    ({ memory } = looked);
    since = work.until;
    metrics.passed(model, looked.seconds);
    hours = {
      sinceMs: hours?.sinceMs ?? lookedAtMs,
      seconds: hours === null ? looked.seconds : sum(hours.seconds, looked.seconds),
    };
    const { pool } = looked;
    if (signal.aborted || !(await writePool(db, epoch, pool))) return;
    metrics.looked(pool);
    await record(latest, pool);
    latest = pool;
    if (lookedAtMs - hours.sinceMs >= HOURS_EVERY_MS) await writeHours(nowMs);
    if (signal.aborted) return;
    await within(CALL_TIMEOUT_MS, `scaling the workers of ${model}`, driver.scale(model, pool.desired, epoch));
  }

  /** What somebody may want to know later. */
  async function record(before: Pool | null, pool: Pool): Promise<void> {
    const { desired, reason, crash_loop, looked_at } = pool;
    if (before === null || (before.ready === 0) !== (pool.ready === 0)) {
      await noteReady(db, epoch, model, pool.ready, looked_at);
    }
    const from = pool.ready + pool.starting;
    if (desired !== from && desired !== before?.desired) {
      log.info({ model, from, to: desired, reason: reason.kind }, `scaling: ${reasonText(reason)}`);
      await recordPoolEvent(db, epoch, { model, kind: "scaled", detail: { from, to: desired, reason }, by: BY });
    }
    if (crash_loop !== null && (before?.crash_loop ?? null) === null) {
      await recordPoolEvent(db, epoch, { model, kind: "crash_loop", detail: { cause: crash_loop }, by: BY });
    }
  }

  async function writeHours(nowMs: number): Promise<void> {
    if (hours === null) return;
    const { seconds } = hours;
    await addPoolHours(db, epoch, model, new Date(nowMs), seconds);
    hours = null;
  }

  const loop = startLoop({ name: `scale ${model}`, everyMs: LOOK_EVERY_MS, log, run });

  return {
    model,
    ready: () => latest?.ready ?? null,
    wake() {
      // Only the first worker is in a hurry.
      if (latest !== null && latest.ready > 0) return;
      const waitMs = lookedAtMs + LOOK_EVERY_MS_MIN - performance.now();
      if (waitMs <= 0) loop.wake();
      else wakeTimer ??= setTimeout(() => ((wakeTimer = undefined), loop.wake()), waitMs);
    },
    async stop() {
      clearTimeout(wakeTimer);
      await loop.stop();
      await writeHours(clock.now()).catch((error: unknown) => {
        log.warn({ err: error, model }, "could not write the last seconds of workers");
      });
    },
  };
}

const sum = (one: PoolSeconds, other: PoolSeconds): PoolSeconds => ({
  starting_s: one.starting_s + other.starting_s,
  ready_s: one.ready_s + other.ready_s,
  busy_s: one.busy_s + other.busy_s,
  draining_s: one.draining_s + other.draining_s,
  cold_starts: one.cold_starts + other.cold_starts,
});
