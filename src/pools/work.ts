/** The work of a pool as the database knows it: what the scaler weighs. */
import type { Sql } from "#platform/database.ts";
import { firstOf, headsOf, SCORED_DISPATCHED } from "#rollouts/backlog-sql.ts";

/** `frames` are what the engine generates: candidates times actions, and a scored rollout runs twice. */
export interface PoolWork {
  readonly rollouts: number;
  readonly samples: number;
  readonly frames: number;
}

export interface PoolLook {
  /** Of a customer's scored ones those that may begin: for the others no worker would have anything to do. */
  readonly queued: PoolWork;
  /** Not ended; the queue knows which of them a worker has. */
  readonly dispatched: PoolWork;
  /** Between `since` and `until`. */
  readonly succeeded: PoolWork;
  /** All that ended between them, however. */
  readonly ended_frames: number;
  /** By the database's clock. */
  readonly until: Date;
}

/** Counted so far; more than this changes no decision, and a look comes every second. */
const QUEUED_COUNTED_MAX = 20_000;
/** An end is dated by the beginning of its transaction: what is younger may still be on its way. */
const ENDS_SETTLED_MS = 2_000;

const SCORED = "(VALUES ('scored'))";
const SCORED_HEADS = headsOf({ model: "$1", lines: SCORED });
const SCORED_QUEUED = firstOf({
  model: "$1",
  lines: SCORED,
  customer: "h.customer_id",
  limit: "greatest(0, $5 - coalesce(s.dispatched, 0))",
  columns: "r.k, r.actions_per_candidate, r.scored",
});

interface LookOptions {
  /** The `until` of the look before; null: the first, which counts no ends. */
  readonly since: Date | null;
  /** Of a customer's scored rollouts so many may be dispatched at once (rollouts/dispatch.ts). */
  readonly scoredAtOnceMax: number;
}

export async function lookAtPool(sql: Sql, model: string, { since, scoredAtOnceMax }: LookOptions): Promise<PoolLook> {
  const rows = await sql.query<PoolWork & { what: string; until: Date }>(
    `WITH RECURSIVE ${SCORED_HEADS}, ${SCORED_DISPATCHED}, bound AS (SELECT now() - $4::float8 * interval '1 ms' AS until),
     counted AS (
       SELECT what, k, k * actions_per_candidate * (1 + scored::int) AS frames FROM (
         (SELECT 'queued' AS what, k, actions_per_candidate, scored FROM rollouts
           WHERE model = $1 AND status = 'queued' AND line IN ('realtime', 'bulk') LIMIT $3)
         UNION ALL
         SELECT 'queued', first.* FROM heads h LEFT JOIN scored s USING (customer_id) CROSS JOIN LATERAL (${SCORED_QUEUED}) AS first
          WHERE h.id IS NOT NULL
         UNION ALL
         SELECT 'dispatched', k, actions_per_candidate, scored FROM rollouts WHERE model = $1 AND status = 'dispatched'
         UNION ALL
         SELECT CASE status WHEN 'succeeded' THEN 'succeeded' ELSE 'called off' END, k, actions_per_candidate, scored
           FROM rollouts WHERE model = $1 AND finished_at > $2 AND finished_at <= (SELECT until FROM bound)
       ) AS rows
     )
     SELECT what, count(k)::int AS rollouts, coalesce(sum(k), 0)::int AS samples,
            coalesce(sum(frames), 0)::float8 AS frames, (SELECT until FROM bound) AS until
       FROM (VALUES ('queued'), ('dispatched'), ('succeeded'), ('called off')) AS kinds (what)
       LEFT JOIN counted USING (what) GROUP BY what`,
    [model, since, QUEUED_COUNTED_MAX, ENDS_SETTLED_MS, scoredAtOnceMax],
  );
  const of = (what: string): PoolWork => {
    const { rollouts = 0, samples = 0, frames = 0 } = rows.find((row) => row.what === what) ?? {};
    return { rollouts, samples, frames };
  };
  const until = rows[0]?.until;
  if (until === undefined) throw new Error("expected a row of each kind of work, got none");
  const succeeded = of("succeeded");
  return {
    queued: of("queued"),
    dispatched: of("dispatched"),
    succeeded,
    ended_frames: succeeded.frames + of("called off").frames,
    // A clock that was set back must not count the same ends again.
    until: since !== null && since > until ? since : until,
  };
}

/** Whether a rollout of that model succeeded within the last `seconds`. */
export async function succeededLately(sql: Sql, model: string, seconds: number): Promise<boolean> {
  const found = await sql.query(
    `SELECT FROM rollouts WHERE model = $1 AND status = 'succeeded'
        AND finished_at > now() - $2::float8 * interval '1 s' LIMIT 1`,
    [model, seconds],
  );
  return found.length > 0;
}
