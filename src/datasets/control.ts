/**
 * What its owner does with a dataset: pause, resume, cancel, run what failed once more. Each takes the dataset's lock, so
 * it comes before or after a runner's transaction and never into the middle of one.
 */
import type { DatasetState } from "#contract/datasets.ts";
import { ApiError } from "#contract/errors.ts";
import type { CustomerId, DatasetId, KeyId } from "#contract/ids.ts";
import { type Mils, mils, usdText } from "#contract/mils.ts";
import { lockOpenCustomer } from "#keys/mint.ts";
import type { Database, Sql } from "#platform/database.ts";

import { type Dataset, DATASET_COLUMNS } from "./dataset.ts";
import { GO_ON, pauseDataset } from "./pause.ts";
import { checkDatasetQuotas, type DatasetQuotas } from "./quotas.ts";
import { canStep } from "./states.ts";

/** Who asks; what is said of somebody else's dataset is that there is none. */
export interface Owner {
  readonly customer_id: CustomerId;
  readonly key_id: KeyId;
}

/** Throws ApiError: dataset_not_found, wrong_state. Pausing what is paused makes it wait for its owner alone. */
export function pauseByOwner(db: Database, id: DatasetId, owner: Owner): Promise<Dataset> {
  return db.transaction(async (tx) => {
    const dataset = await lockOwned(tx, id, owner);
    if (dataset.pause_reason === "requested") return dataset;
    if (dataset.state !== "running" && dataset.state !== "paused") throw wrongState(dataset, "paused", "running");
    await pauseDataset(tx, dataset, { reason: "requested", message: "you paused it: resume it when you like" });
    return await read(tx, id);
  });
}

/**
 * A paused dataset goes on, or a ready one begins; from now on the key that asks pays. `budget` replaces the budget.
 * Throws ApiError: dataset_not_found, wrong_state.
 */
export function resumeByOwner(db: Database, id: DatasetId, owner: Owner, budget: Mils | undefined): Promise<Dataset> {
  return db.transaction(async (tx) => {
    const dataset = await lockOwned(tx, id, owner);
    if (dataset.state !== "paused" && dataset.state !== "ready")
      throw wrongState(dataset, "resumed", "paused or ready");
    checkBudget(dataset, budget);
    await tx.query(
      `UPDATE datasets SET ${GO_ON}, key_id = $2, budget_mils = coalesce($3::bigint, budget_mils),
                           started_at = coalesce(started_at, now())
        WHERE id = $1`,
      [id, owner.key_id, budget ?? null],
    );
    return await read(tx, id);
  });
}

/** Resuming must not end in the same pause at once. */
function checkBudget(dataset: Dataset, budget: Mils | undefined): void {
  const spent = mils(dataset.charged_mils - dataset.refunded_mils + dataset.held_mils);
  if (budget !== undefined && budget < spent) {
    throw new ApiError(
      "invalid_input",
      `budget: expected at least what is spent and held, $${usdText(spent)}, got $${usdText(budget)}`,
    );
  }
  if (dataset.pause_reason !== "budget_reached" || dataset.budget_mils === null) return;
  if (budget === undefined || budget <= dataset.budget_mils) {
    throw new ApiError(
      "wrong_state",
      `its budget of $${usdText(dataset.budget_mils)} is reached: resume it with a higher budget_mils or budget_usd`,
    );
  }
}

/** What runs is cancelled and refunded by a runner within moments. Cancelling again changes nothing. */
export function cancelByOwner(db: Database, id: DatasetId, owner: Owner): Promise<Dataset> {
  return db.transaction(async (tx) => {
    const dataset = await lockOwned(tx, id, owner);
    if (dataset.state === "cancelling" || dataset.state === "cancelled") return dataset;
    if (!canStep(dataset.state, "cancelling")) throw wrongState(dataset, "cancelled", "ready, running or paused");
    await tx.query(
      `UPDATE datasets SET state = 'cancelling', pause_reason = NULL, message = NULL, needs_frames = NULL,
                           retry_after = NULL, resting_since = NULL
        WHERE id = $1`,
      [id],
    );
    return await read(tx, id);
  });
}

/**
 * Rows that failed, expired or were cancelled are put back by a runner within moments (retry.ts). A completed dataset runs
 * again, at the cost of the key that asks; a running one has more to do; a paused one stays paused. `filesDueAt`: the files
 * of what ended before it are being deleted. Throws ApiError: dataset_not_found, wrong_state, and too_many_datasets where a
 * completed one would be one too many that has not ended.
 */
export function retryByOwner(
  db: Database,
  id: DatasetId,
  owner: Owner,
  filesDueAt: Date,
  quotas: DatasetQuotas,
): Promise<Dataset> {
  return db.transaction(async (tx) => {
    await lockOpenCustomer(tx, owner.customer_id);
    const dataset = await lockOwned(tx, id, owner);
    const retriable: readonly DatasetState[] = ["completed", "running", "paused"];
    if (!retriable.includes(dataset.state)) throw wrongState(dataset, "retried", retriable.join(", "));
    if (dataset.files_deleted_at || (dataset.finished_at && dataset.finished_at <= filesDueAt)) {
      throw new ApiError("wrong_state", "its inputs are not stored any more: send it again as a new dataset");
    }
    if (dataset.rows_failed + dataset.rows_cancelled + dataset.rows_expired === 0) {
      throw new ApiError("wrong_state", "none of its rows failed, expired or was cancelled: there is nothing to retry");
    }
    if (dataset.state === "completed") {
      await tx.query(`UPDATE datasets SET ${GO_ON}, key_id = $2, finished_at = NULL WHERE id = $1`, [id, owner.key_id]);
      await checkDatasetQuotas(tx, owner.customer_id, quotas, "this one");
    }
    await tx.query(
      `UPDATE datasets SET retry_after = 0, resting_since = CASE WHEN state = 'paused' THEN now() END WHERE id = $1`,
      [id],
    );
    return await read(tx, id);
  });
}

async function lockOwned(tx: Sql, id: DatasetId, { customer_id }: Owner): Promise<Dataset> {
  const [dataset] = await tx.query<Dataset>(
    `SELECT ${DATASET_COLUMNS} FROM datasets WHERE id = $1 AND customer_id = $2 FOR UPDATE`,
    [id, customer_id],
  );
  if (!dataset) throw new ApiError("dataset_not_found", "no such dataset of yours");
  return dataset;
}

async function read(tx: Sql, id: DatasetId): Promise<Dataset> {
  const [dataset] = await tx.query<Dataset>(`SELECT ${DATASET_COLUMNS} FROM datasets WHERE id = $1`, [id]);
  if (!dataset) throw new Error(`dataset ${id} vanished`); // never deleted, and locked
  return dataset;
}

const wrongState = ({ state }: Dataset, done: string, expected: string): ApiError =>
  new ApiError("wrong_state", `a dataset can be ${done} while it is ${expected}; this one is ${state}`);
