/** Frames and actions that are sent once and named by many rows of datasets. */
import { createHash } from "node:crypto";

import type { BlobStore } from "#blobs/blob-store.ts";
import { type CustomerId, newUploadId, type RandomBytes, type UploadId } from "#contract/ids.ts";
import { blobKeys } from "#contract/jobs.ts";
import type { Sql } from "#platform/database.ts";

export interface Upload {
  readonly id: UploadId;
  readonly bytes: number;
  readonly sha256: Buffer;
  readonly created_at: Date;
}

/** Stores it under a new id: the same bytes twice are two uploads. */
export async function storeUpload(
  { sql, blobs, random }: { readonly sql: Sql; readonly blobs: BlobStore; readonly random: RandomBytes },
  customerId: CustomerId,
  file: Buffer,
): Promise<Upload> {
  const id = newUploadId(random);
  const sha256 = createHash("sha256").update(file).digest();
  // The row first: retention finds blobs by their rows. Nobody knows the id before both are there.
  const [row] = await sql.query<{ created_at: Date }>(
    `INSERT INTO uploads (id, customer_id, bytes, sha256) VALUES ($1, $2, $3, $4) RETURNING created_at`,
    [id, customerId, file.length, sha256],
  );
  if (!row) throw new Error(`no upload ${id} after inserting it`);
  await blobs.put(blobKeys.upload(id), file);
  return { id, bytes: file.length, sha256, created_at: row.created_at };
}
