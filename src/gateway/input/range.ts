/** The `Range` header (RFC 9110, section 14), for one range of bytes. */
import { ApiError } from "#contract/errors.ts";

/** Both ends included. */
export interface ByteRange {
  readonly start: number;
  readonly end: number;
}

/**
 * Null means the whole: without the header, and for what the RFC lets a server ignore (other units, several ranges,
 * nonsense). Throws ApiError(range_not_satisfiable) for a range past the end.
 */
export function parseRange(header: string | undefined, bytes: number): ByteRange | null {
  const match = /^bytes=(\d{0,15})-(\d{0,15})$/.exec(header ?? "");
  const [, first = "", last = ""] = match ?? [];
  if (first === "" && last === "") return null;
  if (first !== "" && last !== "" && Number(last) < Number(first)) return null;
  const start = first === "" ? Math.max(0, bytes - Number(last)) : Number(first);
  const end = first === "" || last === "" ? bytes - 1 : Math.min(Number(last), bytes - 1);
  if (start >= bytes || (first === "" && Number(last) === 0)) {
    throw new ApiError("range_not_satisfiable", `Range: expected a range within ${bytes} bytes, got ${header}`, {
      headers: { "Content-Range": `bytes */${bytes}` },
    });
  }
  return { start, end };
}
