/** What operators noted about a pool, as events: complaints, commitments, and re-price triggers. */
import { assertLine } from "#ledger/operator-actions.ts";
import { ApiError } from "#contract/errors.ts";
import type { Database, Sql } from "#platform/database.ts";
import { recordPoolEvent } from "#pools/events.ts";
import { setAlwaysWarm } from "#pools/settings.ts";
import { fencedBy } from "#rollouts/leader.ts";

import type { Commitment, Complaint, WARM_TRIGGERS } from "./always-warm.ts";
import { monthOf } from "./month-range.ts";
import type { Reprice } from "./reprice.ts";

export interface Noted {
  readonly complaints: readonly Complaint[];
  readonly commitments: readonly (Commitment & { readonly months: number })[];
}

/** By model: complaints since its pool was last switched off, oldest first; of each customer the commitment that holds at `now`. */
export async function readNoted(sql: Sql, now: Date): Promise<ReadonlyMap<string, Noted>> {
  const complaints = await sql.query<Complaint & { readonly model: string }>(
    `SELECT model, detail ->> 'customer' AS customer, (detail -> 'paying')::bool AS paying, detail ->> 'note' AS note, at
       FROM pool_events e
      WHERE kind = 'complaint'
        AND NOT EXISTS (SELECT FROM pool_events o WHERE o.model = e.model AND o.kind = 'always_warm_off' AND o.id > e.id)
      ORDER BY id`,
  );
  const commitments = await sql.query<Noted["commitments"][number] & { readonly model: string }>(
    `SELECT * FROM (
       SELECT DISTINCT ON (model, detail ->> 'customer') model, detail ->> 'customer' AS customer,
              (detail ->> 'frames_per_month')::float8 AS frames_per_month, (detail ->> 'asks_warm')::bool AS asks_warm,
              (detail ->> 'months')::int AS months, at + make_interval(months => (detail ->> 'months')::int) AS until
         FROM pool_events WHERE kind = 'commitment' ORDER BY model, detail ->> 'customer', id DESC) AS latest
      WHERE frames_per_month > 0 AND until > $1 ORDER BY model, customer`,
    [now],
  );
  const models = new Set([...complaints, ...commitments].map(({ model }) => model));
  return new Map(
    [...models].map((model) => [
      model,
      {
        complaints: complaints.filter((one) => one.model === model),
        commitments: commitments.filter((one) => one.model === model),
      },
    ]),
  );
}

interface ByOperator {
  readonly model: string;
  readonly by: string;
}

/** Returns whether the customer ever paid for a frame: only then does the complaint count. Throws ApiError(invalid_request). */
export async function noteComplaint(
  sql: Sql,
  { model, by, customer, note }: ByOperator & { readonly customer: string; readonly note: string },
): Promise<{ readonly paying: boolean }> {
  assertLine("a note", note);
  const [row] = await sql.query<{ paying: boolean }>(
    `SELECT EXISTS (SELECT FROM rollouts
                     WHERE customer_id = $1 AND finished_at IS NOT NULL AND charge_mils > refunded_mils) AS paying`,
    [customer],
  );
  const paying = row?.paying ?? false;
  await recordPoolEvent(sql, null, { model, kind: "complaint", detail: { customer, note, paying }, by });
  return { paying };
}

export interface NewCommitment extends ByOperator {
  readonly customer: string;
  /** 0 ends the one before. */
  readonly frames_per_month: number;
  readonly months: number;
  readonly asks_warm: boolean;
  readonly note: string;
}

/** Stands until its months are over, or until the customer's next one. Throws ApiError(invalid_request). */
export async function noteCommitment(sql: Sql, { model, by, ...detail }: NewCommitment): Promise<void> {
  assertLine("a note", detail.note);
  await recordPoolEvent(sql, null, { model, kind: "commitment", detail: { ...detail }, by });
}

/** How many workers an operator may keep warm; the column has the same bound. */
const WARM_WORKERS_MAX = 64;

export interface WarmDecision extends ByOperator {
  /** Null: off. */
  readonly workers: number | null;
  /** Null when it is switched off. */
  readonly trigger: (typeof WARM_TRIGGERS)[number] | null;
  readonly note: string;
  /** Of what is decided, kept as it was then: the rent, and whether the trigger held. */
  readonly facts: Readonly<Record<string, string | number | boolean>>;
}

/** Setting and record together, or neither. Throws ApiError(invalid_request). */
export async function decideAlwaysWarm(db: Database, decision: WarmDecision): Promise<void> {
  const { model, by, workers, trigger, note, facts } = decision;
  assertLine("a note", note);
  if (workers !== null && !(Number.isInteger(workers) && workers >= 1 && workers <= WARM_WORKERS_MAX)) {
    throw new ApiError("invalid_request", `expected 1 to ${WARM_WORKERS_MAX} workers, got ${workers}`);
  }
  const why = trigger === null ? note : `${trigger}: ${note}`;
  await db.transaction(async (tx) => {
    await setAlwaysWarm(tx, { model, workers, by, why });
    const kind = workers === null ? "always_warm_off" : "always_warm_on";
    await recordPoolEvent(tx, null, { model, kind, detail: { workers, trigger, note, ...facts }, by });
  });
}

/** True the first time in that month (of a customer's commitment: of that customer). Only in the leader's term. */
export async function recordReprice(
  sql: Sql,
  epoch: bigint,
  { model, month, reprice }: { readonly model: string; readonly month: string; readonly reprice: Reprice },
): Promise<boolean> {
  const written = await sql.query(
    `INSERT INTO pool_events (model, kind, detail, by)
     SELECT $2, 'reprice', $3, 'scheduler' WHERE ${fencedBy("$1")}
     ON CONFLICT DO NOTHING RETURNING id`,
    [epoch, model, JSON.stringify({ month, ...reprice })],
  );
  return written.length > 0;
}

/** What no figure shows: a competitor's price, or a class of accelerators that could be rented. Once a month; false: it was. */
export async function noteReprice(
  sql: Sql,
  { model, by, trigger, note, at }: ByOperator & { trigger: "competition" | "gpu_class"; note: string; at: Date },
): Promise<boolean> {
  assertLine("a note", note);
  const written = await sql.query(
    `INSERT INTO pool_events (model, kind, detail, by) VALUES ($1, 'reprice', $2, $3) ON CONFLICT DO NOTHING RETURNING id`,
    [model, JSON.stringify({ month: monthOf(at), trigger, note }), by],
  );
  return written.length > 0;
}
