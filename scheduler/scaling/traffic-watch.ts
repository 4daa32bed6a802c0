/**
 * Where somebody else runs the workers (FLEET=none), this tells from what they do whether there are any, so that clients and
 * the dashboard see a state all the same. It wants nothing and starts nobody.
 */
import { within } from "#platform/bounded.ts";
import { startLoop } from "#platform/loop.ts";
import { type Pool, writePool } from "#pools/pool.ts";
import { lookAtPool, succeededLately } from "#pools/work.ts";
import { predictJobs } from "#queue/queues.ts";

import type { PoolWorkers } from "./fleet/fleet.ts";
import { look, newMemory, type PoolTraits } from "./pool-look.ts";
import { CALL_TIMEOUT_MS, LOOK_EVERY_MS, type PoolLoop, type PoolLoopParts } from "./pool-loop.ts";

/** Whoever runs them keeps an idle one for about this long (the scaledown window), so work of late means a warm one. */
const WARM_AFTER_WORK_S = 60;

export function startTrafficWatch(
  traits: PoolTraits,
  { db, queues, epoch, scoredAtOnceMax, clock, log, metrics }: PoolLoopParts,
): PoolLoop {
  const { model } = traits;
  const jobs = predictJobs(queues, model);
  let memory = newMemory(null);
  let since: Date | null = null;
  const loop = startLoop({
    name: `watch ${model}`,
    everyMs: LOOK_EVERY_MS,
    log,
    async run(signal) {
      const [counts, work, lately] = await Promise.all([
        within(CALL_TIMEOUT_MS, "counting jobs", jobs.counts()),
        lookAtPool(db, model, { since, scoredAtOnceMax }),
        succeededLately(db, model, WARM_AFTER_WORK_S),
      ]);
      const now = clock.now();
      const workers = workersOf(counts, lately, now);
      const looked = look(memory, { workers, jobs: counts, work, always_warm_workers: null }, now, traits);
      ({ memory } = looked);
      since = work.until;
      const desired = workers.ready.length + workers.starting.length;
      const pool: Pool = { ...looked.pool, desired, reason: { kind: "unmanaged" } };
      if (!signal.aborted && (await writePool(db, epoch, pool))) metrics.looked(pool);
    },
  });
  // Nobody waits for what it tells.
  return { model, ready: () => null, wake: () => undefined, stop: () => loop.stop() };
}

/** One stands for all: how many there are nobody says. */
function workersOf(
  { active, waiting }: { active: number; waiting: number },
  lately: boolean,
  nowMs: number,
): PoolWorkers {
  const isWarm = active > 0 || lately;
  return {
    ready: isWarm ? [{ name: "somebody's", jobs: 0, idle_since_ms: nowMs, busy_ms: 0 }] : [],
    starting: !isWarm && waiting > 0 ? [{ name: "somebody's", since_ms: nowMs }] : [],
    draining: 0,
    crash_loop: null,
    starts_s: [],
  };
}
