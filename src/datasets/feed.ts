/**
 * Pending rows become rollouts, a slice at a time: one transaction takes the money, queues the rollouts and marks the
 * rows, under the dataset's lock. A process that dies leaves rows that are pending and unpaid or running and paid, and
 * nothing in between.
 */
import { type Mils, mils, usdText } from "#contract/mils.ts";
import { errorCode } from "#platform/error-code.ts";
import { type Database, rejectsTheData, type Sql } from "#platform/database.ts";
import { type BacklogLimits, roomForRows } from "#rollouts/backlog-limits.ts";
import { type Tried, tryAccepting } from "#rollouts/try-accepting.ts";
import type { NewRollout, Rollout } from "#rollouts/rollout.ts";

import type { Dataset } from "./dataset.ts";
import { UNMEASURED_ACTIONS } from "./envelope.ts";
import { storable } from "./json-fields.ts";
import { type Pause, pauseDataset } from "./pause.ts";
import { rowsPerSecond } from "./pace.ts";
import type { Prepared } from "./prepare.ts";
import { type DatasetRow, ROW_COLUMNS } from "./row.ts";
import { payable, sliceSize, withinBudget } from "./slice-policy.ts";
import { lockMine, type Turn } from "./turn.ts";

const framesOf = (row: Pick<DatasetRow, "num_actions">): number => (row.num_actions ?? UNMEASURED_ACTIONS) + 1;

/**
 * The rows to take up now, by what is in flight, the room in the backlog, the budget and the balance as they look before
 * anything is fetched. Where the backlog is full, rows wait where they are: none fails for it.
 */
export async function nextSlice(
  sql: Sql,
  dataset: Dataset,
  backlog: BacklogLimits,
  nowMs: number,
): Promise<DatasetRow[]> {
  const wanted = sliceSize({ ...dataset, rows_per_s: rowsPerSecond(dataset, nowMs) });
  if (wanted === 0) return [];
  const limit = Math.min(wanted, await roomForRows(sql, dataset.model, dataset.customer_id, backlog));
  if (limit === 0) return [];
  const rows = await sql.query<DatasetRow>(
    `SELECT ${ROW_COLUMNS} FROM dataset_rows WHERE dataset_id = $1 AND state = 'pending' ORDER BY n LIMIT $2`,
    [dataset.id, limit],
  );
  const [money] = await sql.query<{ price: number; balance_mils: Mils }>(
    `SELECT price_in_force(customer_id, now()) AS price, balance_mils
       FROM accounts WHERE customer_id = $1 AND account = 'balance'`,
    [dataset.customer_id],
  );
  if (!money) throw new Error(`customer ${dataset.customer_id} has no account`); // made with the customer
  const { count, cut } = cutToBudget(dataset, rows.map(framesOf), money.price);
  if (count === 0 && cut === "wait") return [];
  // At least one: the debit decides, and what it says is what a pause is told with.
  return rows.slice(0, Math.max(1, Math.min(count, payable(rows.map(framesOf), money.balance_mils, money.price))));
}

/** How many of these rows, in their order, the budget covers, and what it says of the one after them. */
function cutToBudget(
  dataset: Dataset,
  frames: readonly number[],
  price: number,
): { readonly count: number; readonly cut: "wait" | "reached" | null } {
  let held = dataset.held_mils;
  for (const [count, each] of frames.entries()) {
    const next = mils(BigInt(each * price));
    const may = withinBudget({ ...dataset, held_mils: held }, next);
    if (may !== "yes") return { count, cut: may };
    held = mils(held + next);
  }
  return { count: frames.length, cut: null };
}

export interface Fed {
  /** Paid for and queued. */
  readonly accepted: readonly Rollout[];
  /** Rows that failed before anything was charged. */
  readonly failed: number;
  readonly pause: Pause | null;
}

const NOTHING: Fed = { accepted: [], failed: 0, pause: null };

/** Null when the turn is another one's by now. Nothing is done to a dataset that does not run any more. */
export async function feedSlice(db: Database, turn: Turn, slice: readonly Prepared[]): Promise<Fed | null> {
  try {
    return await db.transaction((tx) => feed(tx, turn, slice));
  } catch (error) {
    if (!spoiledByARow(error)) throw error;
    const [only, ...others] = slice;
    if (only && others.length === 0) {
      const failed = { row: only.row, code: "internal", message: "this row cannot be stored" };
      if ("code" in only) throw error; // not even its failure can
      return await db.transaction((tx) => feed(tx, turn, [failed]));
    }
    return await feedOneByOne(db, turn, slice);
  }
}

/** 25P02: in_failed_sql_transaction. Where a row spoilt the statement, tryAccepting went on with halves of it, in vain. */
const spoiledByARow = (error: unknown): boolean =>
  rejectsTheData(error) || (error instanceof Error && errorCode(error) === "25P02");

/** PostgreSQL rolled the slice back for one of its rows: alone, each shows whether it is the one. */
async function feedOneByOne(db: Database, turn: Turn, slice: readonly Prepared[]): Promise<Fed | null> {
  let all: Fed = NOTHING;
  for (const each of slice) {
    const fed = await feedSlice(db, turn, [each]);
    if (!fed) return null;
    all = { accepted: [...all.accepted, ...fed.accepted], failed: all.failed + fed.failed, pause: fed.pause };
    if (fed.pause) break;
  }
  return all;
}

async function feed(tx: Sql, turn: Turn, prepared: readonly Prepared[]): Promise<Fed | null> {
  const dataset = await lockMine(tx, turn);
  if (!dataset) return null;
  if (dataset.state !== "running") return NOTHING;
  const slice = await stillPending(tx, dataset, prepared);
  if (slice.length === 0) return NOTHING;
  const [priced] = await tx.query<{ price: number }>(`SELECT price_in_force($1, now()) AS price`, [
    dataset.customer_id,
  ]);
  const price = priced?.price ?? 0;

  const bad = slice.filter((each) => "code" in each);
  // Somebody may have resumed it with another key since they were prepared: that one pays.
  const good = slice
    .filter((each) => "rollout" in each)
    .map(({ row, rollout }) => ({ row, rollout: { ...rollout, key_id: dataset.key_id } }));
  const { count, cut } = cutToBudget(
    dataset,
    good.map(({ rollout }) => rollout.actions_per_candidate + 1),
    price,
  );
  const tried = await acceptAll(
    tx,
    good.slice(0, count).map(({ rollout }) => rollout),
  );
  const accepted = tried.flatMap((each) => (each?.kind === "accepted" ? [each.rollout] : []));

  await markMeasured(tx, dataset, good);
  await markRunning(tx, dataset, accepted);
  await markFailed(tx, dataset, bad);
  const pause = (await pauseFor(tx, dataset, good, tried)) ?? budgetPause(dataset, good[count]?.rollout, cut, price);
  if (pause) await pauseDataset(tx, dataset, pause);
  return { accepted, failed: bad.length, pause };
}

/** Those that nobody has taken up, or tried, since they were read. */
async function stillPending(tx: Sql, dataset: Dataset, slice: readonly Prepared[]): Promise<readonly Prepared[]> {
  const rows = await tx.query<Pick<DatasetRow, "n" | "try">>(
    `SELECT n, try FROM dataset_rows WHERE dataset_id = $1 AND n = ANY ($2) AND state = 'pending'`,
    [dataset.id, slice.map(({ row }) => row.n)],
  );
  const tries = new Map(rows.map((row) => [row.n, row.try]));
  return slice.filter(({ row }) => tries.get(row.n) === row.try);
}

/** In their order; undefined where the key may not pay. An error of one rolls all of them back. */
async function acceptAll(tx: Sql, rollouts: readonly NewRollout[]): Promise<(Tried | undefined)[]> {
  if (rollouts.length === 0) return [];
  const outcomes = new Map<string, Tried | undefined>();
  await tryAccepting(tx, rollouts, (rollout, tried) => outcomes.set(rollout.id, tried));
  return rollouts.map(({ id }) => {
    const tried = outcomes.get(id);
    if (tried?.kind === "failed") throw tried.error;
    return tried;
  });
}

async function markRunning(tx: Sql, dataset: Dataset, accepted: readonly Rollout[]): Promise<void> {
  if (accepted.length === 0) return;
  const marked = await tx.query(
    `UPDATE dataset_rows d
        SET state = 'running', try = d.try + 1, rollout_id = f.rollout_id, request_id = f.request_id, frames = NULL,
            engine_wall_ms = NULL, video_key = NULL, video_bytes = NULL, finished_at = NULL
       FROM unnest($2::int[], $3::text[], $4::text[]) AS f (n, rollout_id, request_id)
      WHERE d.dataset_id = $1 AND d.n = ANY ($2) AND d.n = f.n AND d.state = 'pending'
     RETURNING d.n`,
    [dataset.id, accepted.map((r) => r.dataset_row), accepted.map((r) => r.id), accepted.map((r) => r.request_id)],
  );
  // They were pending when this transaction looked, and whoever changes rows holds the lock that it has.
  if (marked.length !== accepted.length) throw new Error(`rows of ${dataset.id} were not pending any more`);
  const held = accepted.reduce((sum, { charge_mils }) => sum + charge_mils, 0n);
  await tx.query(
    `UPDATE datasets SET rows_pending = rows_pending - $2, rows_running = rows_running + $2, held_mils = held_mils + $3
      WHERE id = $1`,
    [dataset.id, accepted.length, held],
  );
}

/** What was fetched shows how long a row is, also of one that could not be paid for yet. */
async function markMeasured(
  tx: Sql,
  dataset: Dataset,
  good: readonly { readonly row: DatasetRow; readonly rollout: NewRollout }[],
): Promise<void> {
  const measured = good.filter(({ row }) => row.num_actions === null);
  if (measured.length === 0) return;
  await tx.query(
    `WITH measured AS (
       UPDATE dataset_rows d SET num_actions = m.num_actions
         FROM unnest($2::int[], $3::int[]) AS m (n, num_actions)
        WHERE d.dataset_id = $1 AND d.n = ANY ($2) AND d.n = m.n AND d.num_actions IS NULL
       RETURNING d.num_actions
     )
     UPDATE datasets d SET rows_unmeasured = d.rows_unmeasured - m.rows, frames_expected = d.frames_expected + m.frames
       FROM (SELECT count(*)::int AS rows, coalesce(sum(num_actions + 1), 0)::bigint AS frames FROM measured) m
      WHERE d.id = $1`,
    [dataset.id, measured.map(({ row }) => row.n), measured.map(({ rollout }) => rollout.actions_per_candidate)],
  );
}

async function markFailed(
  tx: Sql,
  dataset: Dataset,
  bad: readonly { readonly row: DatasetRow; readonly code: string; readonly message: string }[],
): Promise<void> {
  if (bad.length === 0) return;
  await tx.query(
    `WITH failed AS (
       UPDATE dataset_rows d SET state = 'failed', error_code = f.code, error_message = f.message, rollout_id = NULL,
                                 request_id = NULL, frames = NULL, finished_at = now()
         FROM unnest($2::int[], $3::text[], $4::text[]) AS f (n, code, message)
        WHERE d.dataset_id = $1 AND d.n = ANY ($2) AND d.n = f.n AND d.state = 'pending'
       RETURNING d.n
     )
     UPDATE datasets d SET rows_pending = d.rows_pending - f.rows, rows_failed = d.rows_failed + f.rows
       FROM (SELECT count(*)::int AS rows FROM failed) f
      WHERE d.id = $1`,
    [dataset.id, bad.map(({ row }) => row.n), bad.map(({ code }) => code), bad.map(({ message }) => storable(message))],
  );
}

/** Why the ledger did not take all of them. */
async function pauseFor(
  tx: Sql,
  dataset: Dataset,
  good: readonly { readonly rollout: NewRollout }[],
  tried: readonly (Tried | undefined)[],
): Promise<Pause | null> {
  if (tried.includes(undefined)) {
    const [key] = await tx.query<{ revoked: boolean }>(
      `SELECT revoked_at IS NOT NULL AS revoked FROM api_keys WHERE id = $1`,
      [dataset.key_id],
    );
    const why = key?.revoked ? "has been revoked" : "has expired";
    return { reason: "key_unusable", message: `the API key that pays for it ${why}: resume it with another one` };
  }
  const at = tried.findIndex((each) => each?.kind === "short");
  const short = tried[at];
  if (short?.kind !== "short") return null;
  return {
    reason: "insufficient_credits",
    message:
      `the next row costs $${usdText(short.charge)} and the balance is $${usdText(short.balance)}: ` +
      "it goes on by itself when the balance can pay for it",
    needs_frames: (good[at]?.rollout.actions_per_candidate ?? 0) + 1,
  };
}

function budgetPause(
  dataset: Dataset,
  next: NewRollout | undefined,
  cut: "wait" | "reached" | null,
  price: number,
): Pause | null {
  if (cut !== "reached" || !next || dataset.budget_mils === null) return null;
  const cost = mils(BigInt((next.actions_per_candidate + 1) * price));
  const spent = mils(dataset.charged_mils - dataset.refunded_mils);
  return {
    reason: "budget_reached",
    message:
      `the next row costs $${usdText(cost)}, and $${usdText(spent)} of the budget of $${usdText(dataset.budget_mils)} ` +
      "are spent: resume it with a higher budget",
  };
}
