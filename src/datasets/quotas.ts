/**
 * What a customer may have at once: each of it costs disk, and work for as long as it has not ended. Whoever adds some of
 * it locks the customer first (lockOpenCustomer) and checks afterwards, in a statement of its own that sees what others
 * committed before; where it is too much, the transaction is rolled back.
 */
import { ApiError } from "#contract/errors.ts";
import type { CustomerId } from "#contract/ids.ts";
import type { Config } from "#platform/config.ts";
import type { Sql } from "#platform/database.ts";

export interface DatasetQuotas {
  /** Datasets that have not ended. */
  readonly datasets: number;
  /** Rows of those together, bad ones too. */
  readonly rows: number;
}

export interface UploadQuotas {
  readonly uploads: number;
  /** Of those together. */
  readonly bytes: number;
}

export interface Quotas {
  readonly datasets: DatasetQuotas;
  readonly uploads: UploadQuotas;
}

const GB = 1_000_000_000;

export const quotasOf = (
  config: Pick<Config, "DATASETS_UNFINISHED_MAX" | "DATASET_ROWS_UNFINISHED_MAX" | "UPLOADS_MAX" | "UPLOADS_GB_MAX">,
): Quotas => ({
  datasets: { datasets: config.DATASETS_UNFINISHED_MAX, rows: config.DATASET_ROWS_UNFINISHED_MAX },
  uploads: { uploads: config.UPLOADS_MAX, bytes: config.UPLOADS_GB_MAX * GB },
});

const END_SOME = "wait until some have ended, or cancel some (POST /v1/datasets/{id}/cancel)";

/** `tx` has added `what` already. Throws ApiError(too_many_datasets). */
export async function checkDatasetQuotas(
  tx: Sql,
  customerId: CustomerId,
  quotas: DatasetQuotas,
  what: "a new one" | "this one",
): Promise<void> {
  const { datasets, rows } = await unfinishedOf(tx, customerId);
  if (datasets > quotas.datasets) {
    throw new ApiError(
      "too_many_datasets",
      `expected at most ${quotas.datasets} datasets that have not ended, got ${datasets} with ${what}: ${END_SOME}`,
    );
  }
  // A new one has no rows yet, and will have one at least.
  if (rows > quotas.rows || (what === "a new one" && rows === quotas.rows)) throw tooManyRows(rows, quotas);
}

/** `tx` has added rows already. Throws ApiError(too_many_datasets). */
export async function checkRowQuota(tx: Sql, customerId: CustomerId, quotas: DatasetQuotas): Promise<void> {
  const { rows } = await unfinishedOf(tx, customerId);
  if (rows > quotas.rows) throw tooManyRows(rows, quotas);
}

const tooManyRows = (rows: number, quotas: DatasetQuotas): ApiError =>
  new ApiError(
    "too_many_datasets",
    `expected at most ${quotas.rows} rows in all datasets that have not ended, got ${rows} with those of this one so far: ${END_SOME}`,
  );

async function unfinishedOf(tx: Sql, customerId: CustomerId): Promise<{ datasets: number; rows: number }> {
  const [used] = await tx.query<{ datasets: number; rows: bigint }>(
    `SELECT count(*)::int AS datasets, coalesce(sum(rows_total), 0) AS rows FROM datasets
      WHERE customer_id = $1 AND finished_at IS NULL`,
    [customerId],
  );
  return { datasets: used?.datasets ?? 0, rows: Number(used?.rows ?? 0) };
}

/** `tx` has added an upload already. Throws ApiError(too_many_uploads). */
export async function checkUploadQuotas(tx: Sql, customerId: CustomerId, quotas: UploadQuotas): Promise<void> {
  const [used] = await tx.query<{ uploads: number; bytes: bigint }>(
    `SELECT count(*)::int AS uploads, coalesce(sum(bytes), 0) AS bytes FROM uploads WHERE customer_id = $1`,
    [customerId],
  );
  const { uploads, bytes } = { uploads: used?.uploads ?? 0, bytes: Number(used?.bytes ?? 0) };
  const deleteSome = "delete some that no row needs any more (GET /v1/uploads, DELETE /v1/uploads/{id})";
  if (uploads > quotas.uploads) {
    throw new ApiError(
      "too_many_uploads",
      `expected at most ${quotas.uploads} uploads, got ${uploads} with this one: ${deleteSome}`,
    );
  }
  if (bytes > quotas.bytes) {
    throw new ApiError(
      "too_many_uploads",
      `expected at most ${quotas.bytes} bytes of uploads, got ${bytes} with this one: ${deleteSome}`,
    );
  }
}
