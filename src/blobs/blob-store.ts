/**
 * Where inputs, videos and results live. Keys are slash-separated paths of `[A-Za-z0-9_.-]` segments (contract/jobs.ts
 * names them all). A key is written whole or not at all: readers never see half a file, and a write replaces.
 */
import type { Readable } from "node:stream";

export interface BlobInfo {
  readonly key: string;
  readonly bytes: number;
  readonly modified_ms: number;
}

export interface BlobStore {
  put(key: string, body: Uint8Array): Promise<void>;
  /** Moves a finished local file into the store (same file system: a rename, else a copy), removing the original. */
  putFile(key: string, localPath: string): Promise<void>;
  /** The same content under another key, which it replaces, and as old as this call; throws BlobNotFound. */
  copy(from: string, to: string): Promise<void>;
  /** Whole content; throws BlobNotFound. */
  get(key: string): Promise<Buffer>;
  /** Size and age, or null when there is no such blob. */
  info(key: string): Promise<BlobInfo | null>;
  /**
   * The whole content, or what there is of it from `start` to `end` inclusive. Throws BlobNotFound before the first byte; a
   * stream that cannot be read to its end fails, and never just ends.
   */
  stream(key: string, range?: { start: number; end: number }): Promise<Readable>;
  /** Removing what is not there is no error. */
  delete(key: string): Promise<void>;
  /** Every blob whose key starts with `prefix`, in no particular order. */
  list(prefix: string): AsyncIterable<BlobInfo>;
  /** A link for GET that works without credentials for that long. Absent, or null, where the store cannot give one. */
  presignedUrl?(
    key: string,
    options: { readonly lifetimeMs: number; readonly filename: string },
  ): Promise<string | null>;
}

export class BlobNotFound extends Error {
  constructor(key: string) {
    super(`no blob ${key}`);
    this.name = "BlobNotFound";
  }
}
