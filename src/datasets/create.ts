/**
 * The life of a dataset until it is received: begun under its idempotency key, kept alive while it comes in, then ready,
 * running or rejected. Its rows and their inputs are the business of ingest-*.ts.
 */
import type { BlobStore } from "#blobs/blob-store.ts";
import { ApiError } from "#contract/errors.ts";
import type { CustomerId, DatasetId, KeyId, RequestId } from "#contract/ids.ts";
import { datasetPrefixes } from "#contract/jobs.ts";
import { DATASET_PROBLEMS_LISTED, IDEMPOTENCY_KEPT_MS } from "#contract/limits.ts";
import { lockOpenCustomer } from "#keys/mint.ts";
import type { Database, Sql } from "#platform/database.ts";

import { dropFiles } from "./archive-files.ts";
import type { CreateParams } from "./create-params.ts";
import { type Dataset, DATASET_COLUMNS } from "./dataset.ts";
import { listProblems } from "./find.ts";
import { checkDatasetQuotas, type DatasetQuotas } from "./quotas.ts";
import { rejectDataset } from "./reject.ts";

export interface NewDataset {
  readonly id: DatasetId;
  readonly customer_id: CustomerId;
  readonly key_id: KeyId;
  readonly request_id: RequestId;
  readonly model: string;
  readonly idempotency_key: string | null;
  readonly params: CreateParams;
}

/** A dataset that was made before under the same idempotency key. */
export interface Earlier {
  readonly id: DatasetId;
  /** Null while it is being received. */
  readonly fingerprint: Buffer | null;
}

/** How often a gateway says that it is still receiving a dataset. */
const BEAT_MS = 5_000;
/** Silence after which whoever repeats the request takes over: its gateway has died. Several beats, and a busy database. */
const SILENT_S = 20;
/** Each new try needs somebody else to have changed the idempotency key just then. */
const TRIES_MAX = 5;

/** Throws ApiError(still_receiving) where another request with this key is being received now. */
export async function findEarlier(sql: Sql, customerId: CustomerId, key: string): Promise<Earlier | null> {
  const [earlier] = await sql.query<Earlier & { state: string; silent: boolean; old: boolean }>(
    `SELECT id, fingerprint, state, worked_at < now() - ${SILENT_S} * interval '1 s' AS silent,
            created_at < now() - ${IDEMPOTENCY_KEPT_MS} * interval '1 ms' AS old
       FROM datasets WHERE customer_id = $1 AND idempotency_key = $2`,
    [customerId, key],
  );
  if (!earlier) return null;
  if (earlier.state === "receiving") {
    if (!earlier.silent) throw stillReceiving();
    await rejectDataset(sql, earlier.id, "its upload broke off, and was begun again");
    return null;
  }
  if (!earlier.old) return earlier;
  await sql.query(`UPDATE datasets SET idempotency_key = NULL WHERE id = $1`, [earlier.id]);
  return null;
}

const stillReceiving = (): ApiError =>
  new ApiError(
    "still_receiving",
    "another request with this Idempotency-Key is being received now; ask again when it has ended",
    { headers: { "Retry-After": String(BEAT_MS / 1000) } },
  );

/**
 * Null once it is begun; else what was made under its key before, which no quota refuses. Throws ApiError:
 * still_receiving, too_many_datasets.
 */
export async function beginDataset(db: Database, dataset: NewDataset, quotas: DatasetQuotas): Promise<Earlier | null> {
  const { customer_id, idempotency_key } = dataset;
  for (let tries = 1; tries <= TRIES_MAX; tries++) {
    const begun = await db.transaction(async (tx) => {
      await lockOpenCustomer(tx, customer_id);
      if (!(await insertDataset(tx, dataset))) return false;
      await checkDatasetQuotas(tx, customer_id, quotas, "a new one");
      return true;
    });
    if (begun || idempotency_key === null) return null;
    const earlier = await findEarlier(db, customer_id, idempotency_key);
    if (earlier) return earlier;
  }
  throw stillReceiving();
}

/** False where there is one under its idempotency key. */
async function insertDataset(tx: Sql, { params, ...dataset }: NewDataset): Promise<boolean> {
  const begun = await tx.query(
    `INSERT INTO datasets (id, customer_id, key_id, request_id, name, model, metadata, on_invalid, budget_mils,
                             webhook_url, idempotency_key)
       VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
       ON CONFLICT ON CONSTRAINT datasets_idempotency_key_once DO NOTHING RETURNING id`,
    [
      dataset.id,
      dataset.customer_id,
      dataset.key_id,
      dataset.request_id,
      params.name,
      dataset.model,
      JSON.stringify(params.metadata),
      params.on_invalid,
      params.budget_mils,
      params.webhook_url,
      dataset.idempotency_key,
    ],
  );
  return begun.length > 0;
}

/** Until the function that it gives is called. A beat that fails is made up for by the next. */
export function keepReceiving(sql: Sql, id: DatasetId): () => void {
  const beat = (): void =>
    void sql
      .query(`UPDATE datasets SET worked_at = now() WHERE id = $1 AND state = 'receiving'`, [id])
      .catch(() => undefined);
  const timer = setInterval(beat, BEAT_MS);
  return () => clearInterval(timer);
}

/**
 * All of it is in: it is ready, or runs. Throws ApiError(dataset_rejected) with its bad rows where they are reason enough,
 * or all there is.
 */
export async function finishReceiving(
  sql: Sql,
  id: DatasetId,
  received: { readonly fingerprint: Buffer; readonly start: boolean; readonly message: string | null },
): Promise<Dataset> {
  await dropFiles(sql, id);
  const [dataset] = await sql.query<Dataset>(
    `UPDATE datasets
        SET received_at = now(), worked_at = now(), fingerprint = $2, message = $4,
            state = CASE WHEN $3 THEN 'running' ELSE 'ready' END, started_at = CASE WHEN $3 THEN now() END,
            resting_since = CASE WHEN $3 THEN NULL ELSE now() END
      WHERE id = $1 AND state = 'receiving' AND rows_pending > 0 AND (on_invalid = 'skip' OR rows_invalid = 0)
    RETURNING ${DATASET_COLUMNS}`,
    [id, received.fingerprint, received.start, received.message],
  );
  if (dataset) return dataset;
  const [rows] = await sql.query<{ total: number; invalid: number }>(
    `SELECT rows_total AS total, rows_invalid AS invalid FROM datasets WHERE id = $1`,
    [id],
  );
  const { total = 0, invalid = 0 } = rows ?? {};
  const problems = await listProblems(sql, id, DATASET_PROBLEMS_LISTED);
  const [first] = problems;
  const what = total === 0 ? "expected at least one row, got none" : `${invalid} of ${total} rows are bad`;
  const message = `${what}${first ? `; the first, on line ${first.line}: ${first.message}` : ""}`;
  throw new ApiError("dataset_rejected", message, { detail: { message, rows: { total, invalid }, problems } });
}

/** What came with a rejected dataset; retention would find it, too, later. */
export async function deleteInputs(blobs: BlobStore, id: DatasetId): Promise<void> {
  for (const prefix of datasetPrefixes(id)) {
    for await (const { key } of blobs.list(prefix)) await blobs.delete(key);
  }
}
