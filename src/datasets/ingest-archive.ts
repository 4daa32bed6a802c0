/**
 * An archive of frames and actions. Its files go into the blob store as they come, in whatever order; at the end rows are
 * made of them: of `<id>.png` (or .jpg, .jpeg) with `<id>.npy`, or of the lines of a `manifest.jsonl` that names them.
 */
import type { BlobStore } from "#blobs/blob-store.ts";
import { ApiError } from "#contract/errors.ts";
import type { DatasetId } from "#contract/ids.ts";
import { blobKeys } from "#contract/jobs.ts";
import { samplingParams } from "#inputs/params.ts";
import type { Sql } from "#platform/database.ts";

import {
  type ArchiveEntry,
  CONTAINER_BYTES,
  containerOf,
  entryBytes,
  tarEntries,
  zipEntries,
} from "./archive-entries.ts";
import { addFiles, type ArchiveFile, filesByStem } from "./archive-files.ts";
import { ingestManifest, type TakeRows } from "./ingest-manifest.ts";
import { type NewRow, ROWS_AT_ONCE } from "./insert-rows.ts";
import { storable } from "./json-fields.ts";
import { type ManifestRules, ROW_ID } from "./manifest-row.ts";
import { checkInput } from "./row-inputs.ts";
import { openSpool, type Spool } from "./spool.ts";

export interface ArchiveTarget {
  readonly sql: Sql;
  readonly blobs: BlobStore;
  readonly datasetId: DatasetId;
  readonly rules: ManifestRules;
  /** Rows of a manifest in the archive. */
  readonly takeNamed: TakeRows;
  /** Rows of pairs; false where no more are wanted. */
  readonly takeRows: (rows: readonly NewRow[]) => Promise<boolean>;
}

/** What the archive held that is nobody's input, for its owner to know: a count and the first names. */
export interface Ignored {
  readonly count: number;
  readonly names: readonly string[];
}

/** Throws ApiError(dataset_rejected) on what is no archive, or a damaged or hostile one. */
export async function ingestArchive(source: AsyncIterable<Buffer>, target: ArchiveTarget): Promise<Ignored> {
  const { head, whole } = await withHead(source);
  const container = containerOf(head);
  if (container === null) {
    throw new ApiError("dataset_rejected", "archive: expected a zip, a tar or a tar.gz, got something else");
  }
  const [archive, manifest] = [await openSpool(), await openSpool()];
  try {
    if (container === "zip") await archive.write(whole);
    const entries = container === "zip" ? zipEntries(archive.fd) : tarEntries(whole, container === "tar.gz");
    const { hasManifest, ignored } = await takeEntries(entries, manifest, target);
    if (hasManifest) await ingestManifest(manifest.read(), { ...target.rules, filesAllowed: true }, target.takeNamed);
    else await takePairs(target);
    return ignored;
  } finally {
    await Promise.all([archive.close(), manifest.close()]);
  }
}

/** The first bytes, and everything, they included. */
async function withHead(source: AsyncIterable<Buffer>): Promise<{ head: Buffer; whole: AsyncIterable<Buffer> }> {
  const iterator = source[Symbol.asyncIterator]();
  let head = Buffer.alloc(0);
  while (head.length < CONTAINER_BYTES) {
    const { value, done } = await iterator.next();
    if (done) break;
    head = Buffer.concat([head, value]);
  }
  async function* whole(): AsyncGenerator<Buffer> {
    try {
      yield head;
      for (;;) {
        const { value, done } = await iterator.next();
        if (done) return;
        yield value;
      }
    } finally {
      await iterator.return?.();
    }
  }
  return { head, whole: whole() };
}

/** Files that are checked and written together. */
const FILES_AT_ONCE = 8;
const HELD_BYTES_MAX = 8 * 1024 * 1024;
/** Files of one statement. */
const FILES_NOTED_AT_ONCE = 500;
const NAME_CHARS_MAX = 500;
const IGNORED_NAMED_MAX = 3;

async function takeEntries(
  entries: AsyncIterable<ArchiveEntry>,
  manifest: Spool,
  target: ArchiveTarget,
): Promise<{ readonly hasManifest: boolean; readonly ignored: Ignored }> {
  const { sql, datasetId } = target;
  let hasManifest = false;
  let ignoredCount = 0;
  const ignoredNames: string[] = [];
  let place = 0;
  let held: { readonly file: EntryPlace; readonly bytes: Buffer }[] = [];
  let heldBytes = 0;
  let noted: ArchiveFile[] = [];

  async function storeHeld(): Promise<void> {
    const files = held;
    held = [];
    heldBytes = 0;
    noted.push(...(await Promise.all(files.map(({ file, bytes }) => storeFile(file, bytes, target)))));
    if (noted.length >= FILES_NOTED_AT_ONCE) await note();
  }
  async function note(): Promise<void> {
    const files = noted;
    noted = [];
    if (files.length > 0) await addFiles(sql, datasetId, files);
  }

  for await (const entry of entries) {
    place += 1;
    const kind = kindOf(entry.name);
    if (kind === "hidden") continue;
    if (kind === "manifest") {
      if (hasManifest) throw new ApiError("dataset_rejected", "archive: expected one manifest.jsonl, got several");
      await saveManifest(entry, manifest);
      hasManifest = true;
      continue;
    }
    if (kind === "other") {
      ignoredCount += 1;
      if (ignoredNames.length < IGNORED_NAMED_MAX) ignoredNames.push(entry.name);
      continue;
    }
    const file = { entry: place, name: cleanName(entry.name), ...kind };
    try {
      if (entry.problem !== null) throw new ApiError("invalid_input", entry.problem);
      const bytes = await entryBytes(entry);
      held.push({ file, bytes });
      heldBytes += bytes.length;
    } catch (error) {
      noted.push(badFile(file, error));
    }
    if (held.length >= FILES_AT_ONCE || heldBytes >= HELD_BYTES_MAX) await storeHeld();
  }
  await storeHeld();
  await note();
  return { hasManifest, ignored: { count: ignoredCount, names: ignoredNames } };
}

/** A line for each of 250,000 rows, and room; one with inputs in it is better sent as a manifest. */
const MANIFEST_BYTES_MAX = 512 * 1024 * 1024;

async function saveManifest(entry: ArchiveEntry, spool: Spool): Promise<void> {
  if (entry.bytes > MANIFEST_BYTES_MAX) {
    const sizes = `at most ${MANIFEST_BYTES_MAX} bytes, got ${entry.bytes}`;
    throw new ApiError("dataset_rejected", `archive: manifest.jsonl: expected ${sizes}; send it as "manifest" instead`);
  }
  // Larger than an input may be, and that is all right.
  await spool.write(entry.chunks());
}

type EntryPlace = Pick<ArchiveFile, "entry" | "name" | "stem" | "part">;

async function storeFile(
  file: EntryPlace,
  bytes: Buffer,
  { blobs, datasetId, rules }: ArchiveTarget,
): Promise<ArchiveFile> {
  try {
    const num_actions = await checkInput(bytes, file.part, rules.model);
    await blobs.put(blobKeys.datasetInput(datasetId, file.entry, file.part), bytes);
    return { ...file, num_actions, error_code: null, error_message: null };
  } catch (error) {
    return badFile(file, error);
  }
}

/** Rethrows what is not the file's fault. */
function badFile(file: EntryPlace, error: unknown): ArchiveFile {
  if (!(error instanceof ApiError) || error.code !== "invalid_input") throw error;
  const message = storable(`${file.name}: ${error.message}`);
  return { ...file, num_actions: null, error_code: error.code, error_message: message };
}

/** Without the "./" that tar writes. Throws ApiError(dataset_rejected) on a name that is none of a file in the archive. */
function cleanName(raw: string): string {
  const name = raw.replace(/^(\.\/+)+/, "");
  const segments = name.split("/");
  const odd = name.startsWith("/") || segments.includes("..") || /[\p{Cc}\\]/u.test(name) || !name.isWellFormed();
  if (!odd && name.length <= NAME_CHARS_MAX) return name;
  const shown = JSON.stringify(raw.slice(0, 100).toWellFormed());
  throw new ApiError(
    "dataset_rejected",
    `archive: expected names of at most ${NAME_CHARS_MAX} characters inside the archive, got ${shown}`,
  );
}

type Kind = "hidden" | "manifest" | "other" | { readonly stem: string; readonly part: "frame" | "actions" };

function kindOf(raw: string): Kind {
  const segments = cleanName(raw).split("/");
  if (segments.some((segment) => segment.startsWith(".") || segment === "__MACOSX")) return "hidden";
  const base = segments.at(-1) ?? "";
  if (base === "manifest.jsonl") return "manifest";
  const [, stem = "", extension = ""] = /^(.*)\.(png|jpe?g|npy)$/i.exec(base) ?? [];
  if (extension === "") return "other";
  return { stem, part: extension.toLowerCase() === "npy" ? "actions" : "frame" };
}

async function takePairs({ sql, datasetId, rules, takeRows }: ArchiveTarget): Promise<void> {
  const params = samplingParams(rules.defaults, rules.model);
  let rows: NewRow[] = [];
  let n = 0;
  for await (const files of filesByStem(sql, datasetId)) {
    n += 1;
    rows.push(rowOf(files, n, datasetId, params));
    if (rows.length < ROWS_AT_ONCE) continue;
    if (!(await takeRows(rows))) return;
    rows = [];
  }
  if (rows.length > 0) await takeRows(rows);
}

/** Of the files of one stem. */
function rowOf(
  files: readonly ArchiveFile[],
  n: number,
  datasetId: DatasetId,
  params: ReturnType<typeof samplingParams>,
): NewRow {
  const stem = files[0]?.stem ?? "";
  const row_id = ROW_ID.test(stem) ? stem : null;
  const bad = (code: string, message: string): NewRow => ({ n, row_id, code, message });
  if (row_id === null) {
    return bad("invalid_input", `${files[0]?.name}: expected a name of 1 to 100 letters, digits, "_", "." or "-"`);
  }
  const damaged = files.find(({ error_code }) => error_code !== null);
  if (damaged) return bad(damaged.error_code ?? "", damaged.error_message ?? "");
  const frames = files.filter(({ part }) => part === "frame");
  const actions = files.filter(({ part }) => part === "actions");
  const [frame] = frames;
  const [action] = actions;
  if (!frame) return bad("missing_file", `${action?.name}: expected a frame beside it: ${stem}.png or ${stem}.jpg`);
  if (!action) return bad("missing_file", `${frame.name}: expected actions beside it: ${stem}.npy`);
  if (files.length > 2) {
    const names = files.map(({ name }) => name).join(", ");
    return bad("duplicate_id", `expected one frame and one actions file of a name, got ${names}`);
  }
  const source = {
    frame: { kind: "blob" as const, key: blobKeys.datasetInput(datasetId, frame.entry, "frame") },
    actions: { kind: "blob" as const, key: blobKeys.datasetInput(datasetId, action.entry, "actions") },
  };
  return { n, row_id, source, params, metadata: {}, num_actions: action.num_actions };
}
