/** The body of a dataset, from the caller's bytes to rows. Memory is bounded whatever comes: see ingest-*.ts. */
import { createHash } from "node:crypto";

import type { CustomerId, DatasetId } from "#contract/ids.ts";
import { DATASET_PROBLEMS_LISTED } from "#contract/limits.ts";
import { lockOpenCustomer } from "#keys/mint.ts";
import type { Database } from "#platform/database.ts";

import { type Ignored, ingestArchive } from "./ingest-archive.ts";
import { ingestManifest } from "./ingest-manifest.ts";
import { insertRows, type NewRow } from "./insert-rows.ts";
import type { ManifestRules } from "./manifest-row.ts";
import { checkRowQuota, type DatasetQuotas } from "./quotas.ts";
import { createRowInputs, type InputChecks } from "./row-inputs.ts";

export interface DatasetBody {
  /** Of the form: a manifest or an archive. */
  readonly part: "manifest" | "archive";
  readonly chunks: AsyncIterable<Buffer>;
}

export interface Receiver extends InputChecks {
  readonly db: Database;
  readonly quotas: DatasetQuotas;
}

export interface Reception {
  readonly datasetId: DatasetId;
  readonly customerId: CustomerId;
  readonly onInvalid: "skip" | "reject";
  readonly rules: Omit<ManifestRules, "filesAllowed">;
}

export interface Received {
  /** A word on what was ignored; null where nothing was. */
  readonly message: string | null;
  /** False where it ended before the body did: the dataset will be rejected for more bad rows than an answer lists. */
  readonly whole: boolean;
}

/** Throws ApiError where it cannot go on; the rows until then are there. */
export async function receiveBody(
  receiver: Receiver,
  { datasetId, customerId, onInvalid, rules }: Reception,
  { part, chunks }: DatasetBody,
): Promise<Received> {
  const { db, blobs, quotas } = receiver;
  const inputs = createRowInputs(receiver, db, { customerId, datasetId, model: rules.model });
  let whole = true;
  const takeRows = async (rows: readonly NewRow[]): Promise<boolean> => {
    const { rows_invalid } = await db.transaction(async (tx) => {
      // First, because several datasets of one customer may be coming in: together they keep to the quota.
      await lockOpenCustomer(tx, customerId);
      const soFar = await insertRows(tx, datasetId, rows);
      await checkRowQuota(tx, customerId, quotas);
      return soFar;
    });
    whole = onInvalid === "skip" || rows_invalid < DATASET_PROBLEMS_LISTED;
    return whole;
  };
  const takeNamed = async (rows: Parameters<typeof inputs.resolve>[0]): Promise<boolean> =>
    takeRows(await inputs.resolve(rows));
  if (part === "manifest") {
    await ingestManifest(chunks, { ...rules, filesAllowed: false }, takeNamed);
    return { message: null, whole };
  }
  const target = { sql: db, blobs, datasetId, rules: { ...rules, filesAllowed: true }, takeNamed, takeRows };
  return { message: wordOn(await ingestArchive(chunks, target)), whole };
}

function wordOn({ count, names }: Ignored): string | null {
  if (count === 0) return null;
  const named = `${names.join(", ")}${count > names.length ? " and others" : ""}`;
  return `files of the archive that are no PNG, JPEG, .npy or manifest.jsonl were ignored (${count}): ${named}`;
}

/** SHA-256 of what was sent: the same request again has the same. */
export interface BodyFingerprint {
  /** The bytes as they came, added on their way. */
  of(chunks: AsyncIterable<Buffer>): AsyncGenerator<Buffer>;
  digest(): Buffer;
}

export function createBodyFingerprint(model: string, params: string | undefined, part: string): BodyFingerprint {
  const hash = createHash("sha256").update(`${JSON.stringify([model, params ?? null, part])}\n`);
  return {
    async *of(chunks) {
      for await (const chunk of chunks) {
        hash.update(chunk);
        yield chunk;
      }
    },
    digest: () => hash.digest(),
  };
}
