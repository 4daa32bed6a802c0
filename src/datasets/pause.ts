/** A dataset that cannot go on, or shall not; and the one pause that ends by itself. */
import type { PauseReason } from "#contract/datasets.ts";
import type { DatasetId } from "#contract/ids.ts";
import type { Sql } from "#platform/database.ts";
import { tellWebhooks } from "#webhooks/outbox.ts";

import type { Dataset } from "./dataset.ts";

export interface Pause {
  readonly reason: PauseReason;
  /** For its owner: what it waits for. */
  readonly message: string;
  /** Of the row that the balance is too low for; with the reason `insufficient_credits`, and only then. */
  readonly needs_frames?: number;
}

/**
 * Refunds and small top-ups may each pay for one more row: its owner is called when credits run out, and not again for
 * every such row.
 */
const TELL_SHORT_EVERY_MS = 10 * 60_000;

/** For a transaction that holds the dataset's lock and has seen it run (or pause for another reason). */
export async function pauseDataset(tx: Sql, dataset: Dataset, pause: Pause): Promise<void> {
  const short = pause.reason === "insufficient_credits";
  const [before] = await tx.query<{ told: boolean }>(
    `SELECT told_short_at > now() - $2::float8 * interval '1 ms' AS told FROM datasets WHERE id = $1`,
    [dataset.id, TELL_SHORT_EVERY_MS],
  );
  const tell = !(short && before?.told === true);
  await tx.query(
    `UPDATE datasets SET state = 'paused', pause_reason = $2, message = $3, needs_frames = $4, resting_since = now(),
                         told_short_at = CASE WHEN $5 THEN now() ELSE told_short_at END
      WHERE id = $1`,
    [dataset.id, pause.reason, pause.message, pause.needs_frames ?? null, short && tell],
  );
  if (!tell) return;
  const { id: dataset_id, customer_id, webhook_url } = dataset;
  await tellWebhooks(tx, { customer_id, event: "dataset.paused", dataset_id, webhook_url });
}

/** What goes on is running again, at a pace that begins anew. */
export const GO_ON = `
  state = 'running', pause_reason = NULL, message = NULL, needs_frames = NULL, resting_since = NULL, pace_rows = 0, pace_s = 0, pace_at = now()`;

const RESUMED_AT_ONCE_MAX = 100;

/** Datasets that ran out of credits and whose next row the balance pays for again go on; which ones. */
export async function resumePayable(sql: Sql): Promise<DatasetId[]> {
  const rows = await sql.query<{ id: DatasetId }>(
    `UPDATE datasets SET ${GO_ON}
      WHERE id IN (SELECT d.id
                     FROM datasets d JOIN accounts a ON a.customer_id = d.customer_id AND a.account = 'balance'
                    WHERE d.pause_reason = 'insufficient_credits'
                      AND a.balance_mils >= d.needs_frames::bigint * price_in_force(d.customer_id, now())
                    LIMIT ${RESUMED_AT_ONCE_MAX}
                      FOR UPDATE OF d SKIP LOCKED)
        AND pause_reason = 'insufficient_credits'
     RETURNING id`,
    [],
  );
  return rows.map(({ id }) => id);
}
