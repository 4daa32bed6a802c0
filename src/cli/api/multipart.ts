/** `multipart/form-data` whose files are read from the disk as they are sent, so that gigabytes take no memory. */
import { randomUUID } from "node:crypto";

/** Bytes that can be read more than once: a call that is tried again sends them again. */
export interface Upload {
  readonly filename: string;
  readonly type: string;
  /** Null where only reading tells. */
  readonly bytes: number | null;
  open(): AsyncIterable<Uint8Array>;
}

export interface Form {
  readonly contentType: string;
  /** Of the whole body. */
  readonly bytes: number | null;
  open(): AsyncGenerator<Uint8Array>;
}

/** Parts in the order in which they are given. */
export function createForm(parts: readonly (readonly [name: string, value: string | Upload])[]): Form {
  const boundary = `dream-engine-${randomUUID()}`;
  const heads = parts.map(([name, value]) => Buffer.from(`--${boundary}\r\n${headOf(name, value)}\r\n\r\n`));
  const end = Buffer.from("\r\n");
  const last = Buffer.from(`--${boundary}--\r\n`);

  let bytes: number | null = last.length;
  for (const [index, [, value]] of parts.entries()) {
    const own = typeof value === "string" ? Buffer.byteLength(value) : value.bytes;
    bytes = own === null || bytes === null ? null : bytes + (heads[index]?.length ?? 0) + own + end.length;
  }
  return {
    contentType: `multipart/form-data; boundary=${boundary}`,
    bytes,
    async *open() {
      for (const [index, [, value]] of parts.entries()) {
        yield heads[index] ?? end;
        if (typeof value === "string") yield Buffer.from(value);
        else yield* value.open();
        yield end;
      }
      yield last;
    },
  };
}

function headOf(name: string, value: string | Upload): string {
  const disposition = `Content-Disposition: form-data; name="${name}"`;
  if (typeof value === "string") return disposition;
  // What could end the quoted name goes percent-encoded, as browsers send it.
  const filename = value.filename.replaceAll(/["\r\n]/g, encodeURIComponent);
  return `${disposition}; filename="${filename}"\r\nContent-Type: ${value.type}`;
}

export function uploadOf(filename: string, type: string, content: Uint8Array): Upload {
  return {
    filename,
    type,
    bytes: content.length,
    async *open() {
      yield content;
    },
  };
}
