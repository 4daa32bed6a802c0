/** How the server is doing, by model. Asked often and without a key, so the answers are kept for a few seconds. */
import type { Clock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import { priceFor } from "#billing/prices.ts";
import type { PoolState } from "#contract/pool.ts";
import type { PredictJobs } from "#queue/queues.ts";
import { countQueued } from "#rollouts/find.ts";
import { latencyOf } from "#rollouts/latency.ts";
import { paceOf } from "#rollouts/pace.ts";

import type { PoolStates } from "./gateway-parts.ts";
import type { Models } from "./models.ts";

const STATUS_KEPT_MS = 3_000;
const POOLS_KEPT_MS = 1_000;
const PRICE_KEPT_MS = 10_000;
const PACE_KEPT_MS = 2_000;

export interface ModelStatus {
  readonly slug: string;
  readonly pool: PoolState;
  /** Accepted and not yet taken by a worker: in the backlog or in the ready queue. */
  readonly queue_depth: number;
  readonly latency: Awaited<ReturnType<typeof latencyOf>>;
}

export interface ServerStatus {
  readonly startedMs: number;
  models(): Promise<readonly ModelStatus[]>;
  poolOf(slug: string): Promise<PoolState>;
  /** Rollouts a second that come out at present; 0 for a model that is not here. */
  paceOf(slug: string): Promise<number>;
  /** The list price, for the catalogue, which needs no key. */
  listPriceMils(): Promise<number>;
}

export function createServerStatus(parts: {
  db: Database;
  clock: Clock;
  models: Models;
  pools: PoolStates;
  jobsOf: (model: string) => PredictJobs;
}): ServerStatus {
  const { db, clock, models, pools, jobsOf } = parts;
  const poolStates = keptFor(POOLS_KEPT_MS, clock, () => pools.poolStates());
  const listPrice = keptFor(PRICE_KEPT_MS, clock, () => priceFor(db, null));

  const paces = new Map(models.all.map(({ slug }) => [slug, keptFor(PACE_KEPT_MS, clock, () => paceOf(db, slug))]));

  const modelStatuses = keptFor(STATUS_KEPT_MS, clock, async () => {
    const [backlog, states] = await Promise.all([countQueued(db), poolStates()]);
    return Promise.all(
      models.all.map(async ({ slug }) => {
        const [counts, latency] = await Promise.all([
          jobsOf(slug).counts(),
          latencyOf(db, slug, new Date(clock.now())),
        ]);
        return {
          slug,
          pool: states[slug] ?? "cold",
          queue_depth: (backlog.get(slug) ?? 0) + counts.waiting,
          latency,
        } satisfies ModelStatus;
      }),
    );
  });

  return {
    startedMs: clock.now(),
    models: modelStatuses,
    poolOf: async (slug) => (await poolStates())[slug] ?? "cold",
    paceOf: async (slug) => (await paces.get(slug)?.()) ?? 0,
    listPriceMils: listPrice,
  };
}

/** One load at a time, its result kept for a while; a failed one is not kept. */
function keptFor<T>(keptMs: number, clock: Clock, load: () => Promise<T>): () => Promise<T> {
  let kept: { readonly value: Promise<T>; readonly untilMs: number } | undefined;
  return () => {
    const now = clock.now();
    if (kept && now < kept.untilMs) return kept.value;
    const value = load();
    kept = { value, untilMs: now + keptMs };
    value.catch(() => {
      if (kept?.value === value) kept = undefined;
    });
    return value;
  };
}
