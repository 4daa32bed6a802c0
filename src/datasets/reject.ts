/** The end of a dataset that is being received and comes to nothing. */
import type { DatasetId } from "#contract/ids.ts";
import type { Sql } from "#platform/database.ts";

import { dropFiles } from "./archive-files.ts";

/**
 * Nothing of it will run; its idempotency key is free again, because nothing was made under it. False where it is not
 * being received. What it has in the blob store is deleted by whoever calls, or by retention.
 */
export async function rejectDataset(sql: Sql, id: DatasetId, message: string): Promise<boolean> {
  const rejected = await sql.query(
    `UPDATE datasets SET state = 'rejected', finished_at = now(), message = $2, idempotency_key = NULL
      WHERE id = $1 AND state = 'receiving' RETURNING id`,
    [id, message],
  );
  if (rejected.length > 0) await dropFiles(sql, id);
  return rejected.length > 0;
}
