/** Pool states as clients are told them: what the leading scheduler saw at its latest look. */
import type { PoolState } from "#contract/pool.ts";
import type { Clock } from "#platform/clock.ts";
import type { Sql } from "#platform/database.ts";
import { poolStateOf, readPools } from "#pools/pool.ts";

export function createPoolStates(
  db: Sql,
  models: readonly string[],
  clock: Clock,
): { poolStates(): Promise<Record<string, PoolState>> } {
  return {
    async poolStates() {
      const pools = new Map((await readPools(db)).map((pool) => [pool.model, pool]));
      return Object.fromEntries(models.map((model) => [model, poolStateOf(pools.get(model), clock.now())]));
    },
  };
}
