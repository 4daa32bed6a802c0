/** What happened to a pool, for an operator who asks later why it had the size it had. */
import type { Sql } from "#platform/database.ts";
import { fencedBy } from "#rollouts/leader.ts";

/** `scaled` and `crash_loop` are the scheduler's; the others an operator's, or of figures that an operator should see. */
export type PoolEventKind =
  | "scaled"
  | "crash_loop"
  | "always_warm_on"
  | "always_warm_off"
  | "complaint"
  | "commitment"
  | "reprice";

export interface PoolEvent {
  readonly id: bigint;
  readonly model: string;
  readonly kind: PoolEventKind;
  readonly detail: Readonly<Record<string, unknown>>;
  /** An operator's name, or the part of the system that wrote it. */
  readonly by: string;
  readonly at: Date;
}

export type NewPoolEvent = Omit<PoolEvent, "id" | "at">;

/** `epoch`: only in that leader's term; null: whoever leads. False when it was not written. */
export async function recordPoolEvent(sql: Sql, epoch: bigint | null, event: NewPoolEvent): Promise<boolean> {
  const { model, kind, detail, by } = event;
  const values = [model, kind, JSON.stringify(detail), by];
  const written =
    epoch === null
      ? await sql.query(
          `INSERT INTO pool_events (model, kind, detail, by) VALUES ($1, $2, $3, $4) RETURNING id`,
          values,
        )
      : await sql.query(
          `INSERT INTO pool_events (model, kind, detail, by)
           SELECT $2, $3, $4, $5 WHERE ${fencedBy("$1")} RETURNING id`,
          [epoch, ...values],
        );
  return written.length > 0;
}

export interface PoolEventFilter {
  /** Null: of every model. */
  readonly model: string | null;
  /** Null: of every kind. */
  readonly kinds: readonly PoolEventKind[] | null;
  /** Null: however old. */
  readonly since: Date | null;
  readonly limit: number;
}

/** Newest first. */
export function listPoolEvents(sql: Sql, { model, kinds, since, limit }: PoolEventFilter): Promise<PoolEvent[]> {
  return sql.query<PoolEvent>(
    `SELECT id, model, kind, detail, by, at FROM pool_events
      WHERE ($1::text IS NULL OR model = $1) AND ($2::text[] IS NULL OR kind = ANY ($2))
        AND ($3::timestamptz IS NULL OR at >= $3)
      ORDER BY id DESC LIMIT $4`,
    [model, kinds, since, limit],
  );
}

/** A pool scales many times a day; what was decided about it is looked up in the next year's books. */
const SCALED_KEPT = "30 days";
const DECISIONS_KEPT = "400 days";

/** Only in the leader's term; how many. */
export async function deleteOldPoolEvents(sql: Sql, epoch: bigint, now: Date, limit: number): Promise<number> {
  const deleted = await sql.query(
    `DELETE FROM pool_events
      WHERE id IN (SELECT id FROM pool_events
                    WHERE at < $2::timestamptz - CASE kind WHEN 'scaled' THEN interval '${SCALED_KEPT}'
                                                           ELSE interval '${DECISIONS_KEPT}' END
                      AND at < $2::timestamptz - interval '${SCALED_KEPT}'
                    ORDER BY at LIMIT $3)
        AND ${fencedBy("$1")}
     RETURNING id`,
    [epoch, now, limit],
  );
  return deleted.length;
}
