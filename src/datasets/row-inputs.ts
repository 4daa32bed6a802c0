/**
 * The inputs of rows that are here already: bytes in the manifest, uploads and entries of an archive. They are checked as
 * far as it is cheap (a frame's header, actions whole) and what came with the dataset is put into the blob store, before
 * a row names it. What is elsewhere (a URL) is checked when it is fetched.
 */
import type { BlobStore } from "#blobs/blob-store.ts";
import { BlobNotFound } from "#blobs/blob-store.ts";
import { ApiError } from "#contract/errors.ts";
import type { CustomerId, DatasetId, UploadId } from "#contract/ids.ts";
import { blobKeys } from "#contract/jobs.ts";
import { ACTIONS_PER_ROLLOUT_MAX } from "#contract/limits.ts";
import type { Manifest } from "#contract/manifest.ts";
import { checkFrameHeader } from "#inputs/frame.ts";
import { parseActions } from "#inputs/npy.ts";
import type { Sql } from "#platform/database.ts";
import { createSlots, type Slots } from "#platform/slots.ts";

import { type FoundFile, findFiles } from "./archive-files.ts";
import type { NewRow } from "./insert-rows.ts";
import { type BadRow, isBad, type NamedInput, type NamedRow } from "./manifest-row.ts";
import type { InputRef } from "./row.ts";

export type InputPart = "frame" | "actions";

/** Uploads whose check is remembered: rows mostly share a few frames. */
const REMEMBERED_MAX = 10_000;
/** Writes of one dataset at once; each waits for the disk. */
const WRITES_AT_ONCE = 8;

export interface InputChecks {
  /** Reads of stored inputs in this process at once, each of up to 32 MB. */
  readonly reads: Slots;
  readonly blobs: BlobStore;
}

/** Throws ApiError(invalid_input). Gives the number of actions; null for a frame. */
export async function checkInput(bytes: Buffer, part: InputPart, model: Manifest): Promise<number | null> {
  if (part === "frame") {
    await checkFrameHeader(bytes, "start_frame");
    return null;
  }
  const { action_dim, chunk_size } = model.shapes;
  return parseActions(bytes, { action_dim, chunk_size, actions_max: ACTIONS_PER_ROLLOUT_MAX }, "actions").count;
}

/** One for each dataset that comes in. */
export function createRowInputs(
  { reads, blobs }: InputChecks,
  sql: Sql,
  whose: { readonly customerId: CustomerId; readonly datasetId: DatasetId; readonly model: Manifest },
): { resolve(rows: readonly (NamedRow | BadRow)[]): Promise<NewRow[]> } {
  const { customerId, datasetId, model } = whose;
  const writes = createSlots(WRITES_AT_ONCE);
  /** By part and id; a failure is remembered, too. */
  const uploads = new Map<string, Promise<number | null>>();

  async function checkUpload(id: UploadId, part: InputPart): Promise<number | null> {
    const giveBack = await reads.take();
    try {
      return await checkInput(await blobs.get(blobKeys.upload(id)), part, model);
    } catch (error) {
      if (error instanceof BlobNotFound) throw noUpload(id, part);
      throw error;
    } finally {
      giveBack();
    }
  }

  function uploadOf(id: UploadId, part: InputPart, owned: ReadonlySet<string>): Promise<number | null> {
    const name = `${part} ${id}`;
    const known = uploads.get(name);
    if (known) return known;
    const checked = owned.has(id) ? checkUpload(id, part) : Promise.reject(noUpload(id, part));
    checked.catch(() => undefined); // whoever asked hears of it
    uploads.set(name, checked);
    const [oldest] = uploads.keys();
    if (uploads.size > REMEMBERED_MAX && oldest !== undefined) uploads.delete(oldest);
    return checked;
  }

  async function storeInput(bytes: Buffer, part: InputPart, n: number): Promise<Resolved> {
    const count = await checkInput(bytes, part, model);
    const key = blobKeys.datasetInput(datasetId, n, part);
    await blobs.put(key, bytes);
    return { ref: blob(key), count };
  }

  function resolveInput(input: NamedInput, part: InputPart, n: number, found: Found): Resolved | Promise<Resolved> {
    switch (input.kind) {
      case "url":
        return { ref: input, count: null };
      case "upload":
        return uploadOf(input.id, part, found.uploads).then((count) => ({
          ref: blob(blobKeys.upload(input.id)),
          count,
        }));
      case "file": {
        const file = fileOf(input.name, part, found.files);
        return { ref: blob(blobKeys.datasetInput(datasetId, file.entry, part)), count: file.num_actions };
      }
      case "bytes":
      default: // which there is none of
        return storeInput(input.bytes, part, n);
    }
  }

  async function resolveRow(row: NamedRow, found: Found): Promise<NewRow> {
    const giveBack = await writes.take();
    try {
      const frame = await resolveInput(row.frame, "frame", row.n, found);
      const actions = await resolveInput(row.actions, "actions", row.n, found);
      if (actions.count !== null && row.num_actions !== null && actions.count !== row.num_actions) {
        throw new ApiError("invalid_input", `num_actions: the actions are ${actions.count}, got ${row.num_actions}`);
      }
      const { n, row_id, params, metadata } = row;
      const num_actions = actions.count ?? row.num_actions;
      return { n, row_id, source: { frame: frame.ref, actions: actions.ref }, params, metadata, num_actions };
    } catch (error) {
      // Anything else is ours: the disk, the database.
      if (!(error instanceof ApiError) || error.status >= 500) throw error;
      return { n: row.n, row_id: row.row_id, code: error.code, message: error.message };
    } finally {
      giveBack();
    }
  }

  return {
    async resolve(rows) {
      const inputs = rows.flatMap((row) => (isBad(row) ? [] : [row.frame, row.actions]));
      const ids = inputs.flatMap((input) => (input.kind === "upload" ? [input.id] : []));
      const names = inputs.flatMap((input) => (input.kind === "file" ? [input.name] : []));
      const found = {
        uploads: await ownUploads(sql, customerId, ids),
        files: names.length === 0 ? new Map<string, FoundFile>() : await findFiles(sql, datasetId, names),
      };
      return Promise.all(rows.map(async (row) => (isBad(row) ? row : resolveRow(row, found))));
    },
  };
}

interface Resolved {
  readonly ref: InputRef;
  /** Of actions that were looked at. */
  readonly count: number | null;
}

interface Found {
  readonly uploads: ReadonlySet<string>;
  readonly files: ReadonlyMap<string, FoundFile>;
}

const blob = (key: string): InputRef => ({ kind: "blob", key });

const FIELD = { frame: "start_frame", actions: "actions" } as const satisfies Record<InputPart, string>;

/** The same for another customer's: nobody learns which ids exist. */
const noUpload = (id: UploadId, part: InputPart): ApiError =>
  new ApiError("upload_not_found", `${FIELD[part]}.upload: there is no upload ${id} of yours (any more)`);

async function ownUploads(sql: Sql, customerId: CustomerId, ids: readonly UploadId[]): Promise<ReadonlySet<string>> {
  if (ids.length === 0) return new Set();
  const rows = await sql.query<{ id: string }>(`SELECT id FROM uploads WHERE id = ANY ($1) AND customer_id = $2`, [
    [...new Set(ids)],
    customerId,
  ]);
  return new Set(rows.map(({ id }) => id));
}

/** Throws ApiError where the archive has no such file, or it is none of that kind, or not a good one. */
function fileOf(name: string, part: InputPart, files: ReadonlyMap<string, FoundFile>): FoundFile {
  const file = files.get(name);
  const where = `${FIELD[part]}.file`;
  if (!file) {
    throw new ApiError(
      "invalid_input",
      `${where}: the archive has no file ${JSON.stringify(name)} (PNG, JPEG or .npy)`,
    );
  }
  if (file.part !== part) {
    const expected = part === "frame" ? "a PNG or JPEG" : "a .npy file";
    throw new ApiError("invalid_input", `${where}: expected ${expected}, got ${JSON.stringify(name)}`);
  }
  if (file.error_code !== null) throw new ApiError("invalid_input", file.error_message ?? "");
  return file;
}
