/** Pool states for a gateway that starts no workers itself: told from what they do. */
import type { Manifest } from "#contract/manifest.ts";
import type { PoolState } from "#contract/pool.ts";
import type { Database } from "#platform/database.ts";
import type { QueueSystem } from "#queue/job-queue.ts";
import { predictJobs } from "#queue/queues.ts";

/** An idle worker stays for about this long (the scale-down window), so recent work means a warm worker. */
const WARM_AFTER_WORK = "60 seconds";

export function poolStatesFromTraffic(
  db: Database,
  queues: QueueSystem,
  manifests: readonly Manifest[],
): { poolStates(): Promise<Record<string, PoolState>> } {
  async function stateOf(model: string): Promise<PoolState> {
    const { active, waiting } = await predictJobs(queues, model).counts();
    if (active > 0) return "warm";
    const recent = await db.query(
      `SELECT 1 FROM rollouts WHERE model = $1 AND status = 'succeeded'
          AND finished_at > now() - interval '${WARM_AFTER_WORK}' LIMIT 1`,
      [model],
    );
    if (recent.length > 0) return "warm";
    return waiting > 0 ? "warming" : "cold";
  }

  return {
    async poolStates() {
      return Object.fromEntries(
        await Promise.all(manifests.map(async ({ slug }) => [slug, await stateOf(slug)] as const)),
      );
    },
  };
}
