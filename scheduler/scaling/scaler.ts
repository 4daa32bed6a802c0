/**
 * Gives every pool the size that the policy wants. A part of the leader. Each model has a loop of its own, so that one whose
 * fleet or queue is broken holds up no other, and none holds up dispatch.
 */
import type { Manifest } from "#contract/manifest.ts";
import type { Service } from "#platform/lifecycle.ts";
import { readPools } from "#pools/pool.ts";

import type { FleetDriver } from "./fleet/fleet.ts";
import { startManagedPool } from "./managed-pool.ts";
import type { PoolLoop, PoolLoopParts } from "./pool-loop.ts";
import { newMemory, type PoolLimits } from "./pool-look.ts";
import { startTrafficWatch } from "./traffic-watch.ts";

/** How this process sees to the workers. */
export interface ScalingSetup {
  /** Null: somebody else runs them. */
  readonly fleet: { readonly kind: "local" | "kubernetes"; readonly driver: FleetDriver } | null;
  readonly limits: PoolLimits;
  /** Workers of a model to keep for the time being, whatever the minimum is; asked at each look. */
  readonly atLeast?: (model: string) => number;
}

export interface ScalerOptions extends PoolLoopParts {
  readonly models: readonly Manifest[];
  readonly scaling: ScalingSetup;
}

export interface Scaler extends Service {
  /** Workers of a model that take jobs, as of the latest look; null: not known. */
  readonly liveWorkers: (model: string) => number | null;
}

export async function startScaler(options: ScalerOptions): Promise<Scaler> {
  const { db, queues, models, metrics } = options;
  const rows = new Map((await readPools(db)).map((row) => [row.model, row]));
  const { fleet, limits, atLeast = () => 0 } = options.scaling;
  const pools: PoolLoop[] = [];
  // First, because what runs already would go on where this fails.
  const unsubscribe = await queues.signals.subscribe(["queued"], () => {
    for (const pool of pools) pool.wake();
  });
  const start = ({ slug: model, engine }: Manifest): PoolLoop => {
    const traits = {
      model,
      fleet: fleet?.kind ?? "none",
      samples_per_worker: engine.max_batch_samples,
      cold_start_s: engine.cold_start_s,
      limits,
    } as const;
    if (fleet === null) return startTrafficWatch(traits, options);
    const first = newMemory(rows.get(model) ?? null);
    return startManagedPool(traits, { driver: fleet.driver, first, atLeast: () => atLeast(model) }, options);
  };
  pools.push(...models.map(start));
  return {
    liveWorkers: (model) => pools.find((pool) => pool.model === model)?.ready() ?? null,
    async stop() {
      await Promise.all(pools.map((pool) => pool.stop()));
      await unsubscribe();
      metrics.clear();
    },
  };
}
