/** Frames and actions that are sent once and named by many rows of datasets. */
import { createHash } from "node:crypto";

import type { BlobStore } from "#blobs/blob-store.ts";
import { type CustomerId, newUploadId, type RandomBytes, type UploadId } from "#contract/ids.ts";
import { blobKeys } from "#contract/jobs.ts";
import { lockOpenCustomer } from "#keys/mint.ts";
import type { Database, Sql } from "#platform/database.ts";

import type { Page } from "./find.ts";
import { checkUploadQuotas, type UploadQuotas } from "./quotas.ts";

export interface Upload {
  readonly id: UploadId;
  readonly bytes: number;
  readonly sha256: Buffer;
  readonly created_at: Date;
}

export interface UploadParts {
  readonly db: Database;
  readonly blobs: BlobStore;
}

/** Stores it under a new id: the same bytes twice are two uploads. Throws ApiError(too_many_uploads). */
export async function storeUpload(
  { db, blobs, random, quotas }: UploadParts & { readonly random: RandomBytes; readonly quotas: UploadQuotas },
  customerId: CustomerId,
  file: Buffer,
): Promise<Upload> {
  const id = newUploadId(random);
  const sha256 = createHash("sha256").update(file).digest();
  // The row first: retention finds blobs by their rows. Nobody knows the id before both are there.
  const created_at = await db.transaction(async (tx) => {
    await lockOpenCustomer(tx, customerId);
    const [row] = await tx.query<{ created_at: Date }>(
      `INSERT INTO uploads (id, customer_id, bytes, sha256) VALUES ($1, $2, $3, $4) RETURNING created_at`,
      [id, customerId, file.length, sha256],
    );
    if (!row) throw new Error(`no upload ${id} after inserting it`);
    await checkUploadQuotas(tx, customerId, quotas);
    return row.created_at;
  });
  await blobs.put(blobKeys.upload(id), file);
  return { id, bytes: file.length, sha256, created_at };
}

/** Newest first. Null where there is no upload `after` of theirs: a page that begins nowhere would look like the end. */
export async function listUploads(
  sql: Sql,
  customerId: CustomerId,
  { limit, after }: { readonly limit: number; readonly after: UploadId | null },
): Promise<Page<Upload> | null> {
  const rows = await sql.query<Upload>(
    `SELECT id, bytes, sha256, created_at FROM uploads
      WHERE customer_id = $1
        AND ($2::text IS NULL OR (created_at, id) < (SELECT created_at, id FROM uploads WHERE id = $2 AND customer_id = $1))
      ORDER BY created_at DESC, id DESC LIMIT $3`,
    [customerId, after, limit + 1],
  );
  if (rows.length === 0 && after !== null && !(await ownsUpload(sql, customerId, after))) return null;
  return { data: rows.slice(0, limit), has_more: rows.length > limit };
}

/** False where there is no such upload of theirs. Rows that name it and have not begun will fail, at no charge. */
export async function deleteUpload({ db, blobs }: UploadParts, customerId: CustomerId, id: UploadId): Promise<boolean> {
  if (!(await ownsUpload(db, customerId, id))) return false;
  // The row last: a crash before it leaves an upload that can be deleted once more, and no file that nobody finds.
  await blobs.delete(blobKeys.upload(id));
  await db.query(`DELETE FROM uploads WHERE id = $1 AND customer_id = $2`, [id, customerId]);
  return true;
}

async function ownsUpload(sql: Sql, customerId: CustomerId, id: UploadId): Promise<boolean> {
  const rows = await sql.query(`SELECT FROM uploads WHERE id = $1 AND customer_id = $2`, [id, customerId]);
  return rows.length > 0;
}
