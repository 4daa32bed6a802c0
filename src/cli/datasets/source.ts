/** What a dataset is created from: a manifest, an archive, or a folder, which goes over the wire as a tar. */
import { createReadStream } from "node:fs";
import { open, readdir, stat } from "node:fs/promises";
import { basename, join, relative, sep } from "node:path";
import { pipeline } from "node:stream/promises";

import tar from "tar-stream";

import { DATASET_BODY_BYTES_MAX } from "#contract/limits.ts";
import type { Upload } from "../api/multipart.ts";
import { UserError } from "../user-error.ts";
import { cannotRead } from "../user-path.ts";

export interface DatasetSource {
  readonly part: "manifest" | "archive";
  readonly upload: Upload;
  /** For the progress bar; of a folder the sum of its files. */
  readonly contentBytes: number;
  /** Files of a folder that are neither frame, actions nor manifest. */
  readonly leftOut: number;
}

const MANIFEST = "manifest.jsonl";
const TAKEN = /\.(png|jpe?g|npy)$/i;
/** Where a tar says so. */
const TAR_MAGIC_AT = 257;
const HEAD_BYTES = 512;

/** Throws UserError for what is none of the three. */
export async function openSource(path: string): Promise<DatasetSource> {
  const info = await stat(path).catch((error: unknown) => {
    throw cannotRead(path, error);
  });
  const source = info.isDirectory() ? await folderSource(path) : await fileSource(path, info.size);
  if (source.contentBytes > DATASET_BODY_BYTES_MAX) {
    throw new UserError(
      `${path} has ${source.contentBytes} bytes; a dataset takes at most ${DATASET_BODY_BYTES_MAX}. Split it, or name its files by URL.`,
    );
  }
  return source;
}

async function fileSource(path: string, bytes: number): Promise<DatasetSource> {
  const kind = kindOf(await headOf(path));
  if (kind === null) {
    throw new UserError(
      `${path} is no dataset: expected a manifest (one JSON object a line), a zip, a tar, a tar.gz, or a folder of <id>.png and <id>.npy.`,
    );
  }
  const upload = { filename: basename(path), type: kind.type, bytes, open: () => createReadStream(path) };
  return { part: kind.part, upload, contentBytes: bytes, leftOut: 0 };
}

/** By content; names lie. */
function kindOf(head: Buffer): { readonly part: DatasetSource["part"]; readonly type: string } | null {
  if (head.subarray(0, 2).toString("latin1") === "PK") return { part: "archive", type: "application/zip" };
  if (head[0] === 0x1f && head[1] === 0x8b) return { part: "archive", type: "application/gzip" };
  if (head.subarray(TAR_MAGIC_AT, TAR_MAGIC_AT + 5).toString("latin1") === "ustar") {
    return { part: "archive", type: "application/x-tar" };
  }
  return /^\uFEFF?\s*\{/.test(head.toString("utf8")) ? { part: "manifest", type: "application/x-ndjson" } : null;
}

async function headOf(path: string): Promise<Buffer> {
  const file = await open(path).catch((error: unknown) => {
    throw cannotRead(path, error);
  });
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(HEAD_BYTES), 0, HEAD_BYTES, 0);
    return buffer.subarray(0, bytesRead);
  } finally {
    await file.close();
  }
}

interface Member {
  readonly name: string;
  readonly bytes: number;
}

async function folderSource(root: string): Promise<DatasetSource> {
  const members: Member[] = [];
  let leftOut = 0;
  for (const entry of await readdir(root, { recursive: true, withFileTypes: true })) {
    const name = relative(root, join(entry.parentPath, entry.name));
    if (!entry.isFile()) continue;
    // What systems strew about is nobody's row, and the server passes it over in archives, too.
    if (name.split(sep).some((part) => part.startsWith(".") || part === "__MACOSX")) continue;
    if (!(name === MANIFEST || TAKEN.test(name))) leftOut++;
    else members.push({ name, bytes: (await stat(join(root, name))).size });
  }
  if (members.length === 0) {
    throw new UserError(`${root} has neither frames (<id>.png or .jpg) nor actions (<id>.npy), and no ${MANIFEST}.`);
  }
  // The manifest first, then each frame beside its actions: whoever pairs them has few to remember.
  members.sort((a, b) => Number(b.name === MANIFEST) - Number(a.name === MANIFEST) || (a.name < b.name ? -1 : 1));
  const upload: Upload = {
    filename: `${basename(root)}.tar`,
    type: "application/x-tar",
    bytes: null,
    open: () => tarOf(root, members),
  };
  return { part: "archive", upload, contentBytes: members.reduce((sum, { bytes }) => sum + bytes, 0), leftOut };
}

/** One file after the other, read as fast as it is sent. */
async function* tarOf(root: string, members: readonly Member[]): AsyncGenerator<Uint8Array> {
  const pack = tar.pack();
  const filled = fill(pack, root, members);
  filled.catch((error: unknown) => pack.destroy(error instanceof Error ? error : new Error(String(error))));
  yield* pack as AsyncIterable<Uint8Array>; // its types know streams of another library only
  await filled;
}

async function fill(pack: tar.Pack, root: string, members: readonly Member[]): Promise<void> {
  for (const { name, bytes } of members) {
    // A file that grows or shrinks meanwhile breaks the upload off: its header has its size already.
    await pipeline(createReadStream(join(root, name)), pack.entry({ name, size: bytes }));
  }
  pack.finalize();
}
