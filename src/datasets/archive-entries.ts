/**
 * The entries of a zip, tar or gzipped tar, one after the other, told apart by content. Nothing that an archive says of
 * itself is believed: sizes are counted as bytes come out, names are never used as paths.
 */
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { crc32, createGunzip } from "node:zlib";

import tar from "tar-stream";
import yauzl from "yauzl";

import { ApiError } from "#contract/errors.ts";
import { DATASET_BODY_BYTES_MAX, DATASET_ROWS_MAX, BODY_BYTES_MAX } from "#contract/limits.ts";

export interface ArchiveEntry {
  readonly name: string;
  /** As it says itself; `chunks` gives as many, or fails. */
  readonly bytes: number;
  /** Why it is none of the inputs there may be. */
  readonly problem: string | null;
  /** To be read to its end before the next entry is asked for, or not at all. Throws ApiError where it is damaged. */
  chunks(): AsyncIterable<Buffer>;
}

export type Container = "zip" | "tar" | "tar.gz";

/** Bytes that tell a container; a tar's mark is the last. */
export const CONTAINER_BYTES = 262;

export function containerOf(head: Buffer): Container | null {
  if (head.subarray(0, 2).toString("latin1") === "PK" && [3, 5, 7].includes(head[2] ?? 0)) return "zip";
  if (head[0] === 0x1f && head[1] === 0x8b) return "tar.gz";
  if (head.subarray(257, 262).toString("latin1") === "ustar") return "tar";
  return null;
}

/** What all entries together may unpack to. Frames are packed already, so honest archives hardly grow. */
const UNPACKED_BYTES_MAX = 4 * DATASET_BODY_BYTES_MAX;
/** Two a row, and as many again that are something else. */
const ENTRIES_MAX = 4 * DATASET_ROWS_MAX;

const damaged = (what: string, cause: unknown): ApiError =>
  new ApiError(
    "dataset_rejected",
    `archive: expected a readable ${what}; it is damaged (${cause instanceof Error ? cause.message : String(cause)})`,
    { cause },
  );

/** Counts what comes out of an archive. Throws ApiError(dataset_rejected). */
function createUnpackLimit(): { entry(): void; bytes(count: number): void } {
  let entries = 0;
  let unpacked = 0;
  return {
    entry() {
      entries += 1;
      if (entries > ENTRIES_MAX)
        throw new ApiError("dataset_rejected", `archive: expected at most ${ENTRIES_MAX} entries`);
    },
    bytes(count) {
      unpacked += count;
      if (unpacked > UNPACKED_BYTES_MAX) {
        throw new ApiError("dataset_rejected", `archive: expected at most ${UNPACKED_BYTES_MAX} bytes when unpacked`);
      }
    },
  };
}

/**
 * Between a tar's entries: the headers that extend the next one's, such as a long name. All of such a header is read at
 * once, and global ones are copied for every entry, so that a few kilobytes of compressed fields would hold the process.
 */
const EXTENDED_HEADERS_BYTES_MAX = 128 * 1024;
/** Of one entry; what tars of today write is around ten. */
const EXTENDED_FIELDS_MAX = 200;

const PIECE_BYTES = 16 * 1024;
/** A tar is filled up with zeros, some of them by megabytes. */
const isPadding = (piece: Buffer): boolean => piece.equals(ZEROS.subarray(0, piece.length));
const ZEROS = Buffer.alloc(PIECE_BYTES);

const overExtended = (): ApiError =>
  new ApiError(
    "dataset_rejected",
    `archive: expected at most ${EXTENDED_FIELDS_MAX} extended fields of an entry, in at most ${EXTENDED_HEADERS_BYTES_MAX} bytes`,
  );

/** Straight from the caller; nothing of it is kept. */
export async function* tarEntries(source: AsyncIterable<Buffer>, gzipped: boolean): AsyncGenerator<ArchiveEntry> {
  const limit = createUnpackLimit();
  const what = gzipped ? "gzipped tar" : "tar";
  const extract = tar.extract();
  /** Came since the last entry was met, and how much of that is its content. */
  let sinceEntry = 0;
  let contentBytes = 0;
  async function* counted(unpacked: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
    for await (const chunk of unpacked) {
      // In pieces, each asked for when the one before was taken in: an entry in that has been met, or waits for its turn.
      for (let at = 0; at < chunk.length; at += PIECE_BYTES) {
        const piece = chunk.subarray(at, at + PIECE_BYTES);
        limit.bytes(piece.length);
        if (!isPadding(piece)) sinceEntry += piece.length;
        if (sinceEntry - contentBytes > EXTENDED_HEADERS_BYTES_MAX) throw overExtended();
        yield piece;
      }
    }
  }
  const input = Readable.from(source, { objectMode: false });
  const unpacked = gzipped ? pipeline(input, createGunzip(), counted, extract) : pipeline(input, counted, extract);
  unpacked.catch(() => undefined); // told where the entries are read
  try {
    for await (const entry of extract) {
      limit.entry();
      const { name, type, size } = entry.header;
      sinceEntry = 0;
      contentBytes = type === "directory" ? 0 : size; // a directory's is not there, whatever it says
      const { pax } = entry.header as { readonly pax?: object | null }; // its types leave it out
      if (Object.keys(pax ?? {}).length > EXTENDED_FIELDS_MAX) throw overExtended();
      const isFile = type === "file" || type === "contiguous-file";
      const chunks = (): AsyncIterable<Buffer> => tarChunks(entry as AsyncIterable<Buffer>, what); // of bytes, by its package's documentation
      const problem = isFile
        ? tooLarge(size)
        : `expected a file, got a ${type} (tar --dereference packs what links lead to)`;
      if (type !== "directory") yield { name, bytes: size, problem, chunks };
      // What was not read of it; to leave a stream of the package before its end would end the archive's.
      entry.resume();
    }
    await unpacked;
  } catch (error) {
    throw error instanceof ApiError ? error : damaged(what, error);
  } finally {
    extract.destroy();
    input.destroy();
  }
}

/** What breaks within an entry breaks the archive. */
async function* tarChunks(entry: AsyncIterable<Buffer>, what: string): AsyncGenerator<Buffer> {
  try {
    yield* entry;
  } catch (error) {
    throw error instanceof ApiError ? error : damaged(what, error);
  }
}

/** A zip's directory is at its end, so it has to be in a file by now, which stays open: it is closed by whoever opened it. */
export async function* zipEntries(fd: number): AsyncGenerator<ArchiveEntry> {
  const limit = createUnpackLimit();
  // A name that leads out of the archive ends it here; sizes that lie end the entry's stream.
  const zip = await yauzl
    .fromFdPromise(fd, { autoClose: false, strictFileNames: true, validateEntrySizes: true })
    .catch((error: unknown) => {
      throw damaged("zip", error);
    });
  try {
    for await (const entry of zip.eachEntry()) {
      limit.entry();
      if (entry.fileName.endsWith("/")) continue;
      const chunks = (): AsyncIterable<Buffer> => zipChunks(zip, entry, limit);
      yield { name: entry.fileName, bytes: entry.uncompressedSize, problem: zipProblem(entry), chunks };
    }
  } catch (error) {
    throw error instanceof ApiError ? error : damaged("zip", error);
  }
}

/** The upper half of the attributes is the file's mode where the archive was made on Unix ("version made by": 3). */
const UNIX = 3;
const KIND_OF_FILE = 0o170000;
const SYMLINK = 0o120000;

function zipProblem(entry: yauzl.Entry): string | null {
  if (entry.isEncrypted()) return "expected a file without a password, got an encrypted one";
  if (!entry.canDecodeFileData())
    return `expected a file stored or deflated, got compression method ${entry.compressionMethod}`;
  const mode = entry.externalFileAttributes >>> 16;
  if (entry.versionMadeBy >> 8 === UNIX && (mode & KIND_OF_FILE) === SYMLINK) return "expected a file, got a symlink";
  return tooLarge(entry.uncompressedSize);
}

async function* zipChunks(
  zip: yauzl.ZipFile,
  entry: yauzl.Entry,
  limit: { bytes(count: number): void },
): AsyncGenerator<Buffer> {
  let checksum = 0;
  try {
    const stream = await zip.openReadStreamPromise(entry);
    for await (const chunk of stream as AsyncIterable<Buffer>) {
      limit.bytes(chunk.length);
      checksum = crc32(chunk, checksum);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ApiError) throw error;
    const reason = error instanceof Error ? error.message : String(error);
    throw new ApiError("invalid_input", `the archive is damaged here (${reason})`, { cause: error });
  }
  if (checksum !== entry.crc32)
    throw new ApiError("invalid_input", "the archive is damaged here (its checksum differs)");
}

const tooLarge = (bytes: number): string | null =>
  bytes > BODY_BYTES_MAX ? `expected at most ${BODY_BYTES_MAX} bytes, got ${bytes}` : null;

/** The content of an entry without a problem. Throws ApiError(invalid_input) where it is damaged. */
export async function entryBytes(entry: ArchiveEntry): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of entry.chunks()) chunks.push(chunk);
  return Buffer.concat(chunks);
}
