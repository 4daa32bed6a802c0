/**
 * A file on the local disk that has no name: it is gone with the process that has it open, however that ends. In the
 * moment in which it has one it is empty.
 */
import { type FileHandle, mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface Spool {
  /** Once. */
  write(chunks: AsyncIterable<Buffer>): Promise<void>;
  /** From its beginning, each time. */
  read(): AsyncIterable<Buffer>;
  /** For whoever reads here and there in it; not to be closed by them. */
  readonly fd: number;
  close(): Promise<void>;
}

const READ_BYTES = 256 * 1024;

export async function openSpool(): Promise<Spool> {
  const folder = await mkdtemp(join(tmpdir(), "dream-engine-spool-"));
  try {
    const file = await open(join(folder, "spool"), "wx+", 0o600);
    return {
      // Not by Node's streams: those close the file where one of them breaks off.
      write: (chunks) => file.writeFile(chunks),
      read: () => piecesOf(file),
      fd: file.fd,
      close: () => file.close(),
    };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function* piecesOf(file: FileHandle): AsyncGenerator<Buffer> {
  for (let position = 0; ;) {
    const { bytesRead, buffer } = await file.read({ buffer: Buffer.allocUnsafe(READ_BYTES), position });
    if (bytesRead === 0) return;
    position += bytesRead;
    yield buffer.subarray(0, bytesRead);
  }
}
