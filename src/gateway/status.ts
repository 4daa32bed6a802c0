/** How the server is doing, by model. Asked often and without a key, so the answers are kept for a few seconds. */
import type { Clock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import { priceFor } from "#billing/prices.ts";
import type { PoolState } from "#contract/pool.ts";
import type { PredictJobs } from "#queue/queues.ts";
import { countQueued } from "#rollouts/find.ts";
import { latencyOf } from "#rollouts/latency.ts";
import { isLookedAfter, poolStateOf, readPools } from "#pools/pool.ts";
import { readInFlight } from "#rollouts/dispatch.ts";
import type { PoolOutlook } from "#rollouts/expected-start.ts";
import { paceOf } from "#rollouts/pace.ts";

import type { PoolStates } from "./gateway-parts.ts";
import { keptFor } from "./kept.ts";
import type { Model, Models } from "./models.ts";

const STATUS_KEPT_MS = 3_000;
const POOLS_KEPT_MS = 1_000;
const PRICE_KEPT_MS = 10_000;
const OUTLOOK_KEPT_MS = 1_000;
/** Of a model that was taken down. */
const UNKNOWN: PoolOutlook = {
  pool: null,
  per_second: 0,
  in_flight: { realtime: { rollouts: 0, samples: 0 }, bulk: { rollouts: 0, samples: 0 } },
  cold_start_s: 0,
};

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
  /** By which the start of what waits is told; of a model that is not here, that nothing is known. */
  outlookOf(slug: string): Promise<PoolOutlook>;
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

  const readAllPools = keptFor(POOLS_KEPT_MS, clock, () => readPools(db));
  const poolOf = async (slug: string): Promise<PoolState> => (await poolStates())[slug] ?? "cold";

  async function readOutlook({ slug, manifest }: Model): Promise<PoolOutlook> {
    const [pool, per_second, in_flight] = await Promise.all([
      readAllPools().then((pools) => pools.find((pool) => pool.model === slug && isLookedAfter(pool, clock.now()))),
      paceOf(db, slug),
      readInFlight(db, slug),
    ]);
    const state = pool ? poolStateOf(pool, clock.now()) : await poolOf(slug);
    const coldStartS = pool?.cold_start_s ?? manifest.engine.cold_start_s;
    return { pool: pool ?? null, per_second, in_flight, cold_start_s: state === "warm" ? 0 : coldStartS };
  }
  const outlooks = new Map(
    models.all.map((model) => [model.slug, keptFor(OUTLOOK_KEPT_MS, clock, () => readOutlook(model))]),
  );

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
    poolOf,
    outlookOf: async (slug) => (await outlooks.get(slug)?.()) ?? UNKNOWN,
    listPriceMils: listPrice,
  };
}
