/**
 * Bytes to lines, without ever holding more than the longest line that is allowed: what goes on past it is counted and
 * dropped until its end. A line ends with LF or CRLF, the last one also with the end; a byte order mark before the first
 * is no part of it. Empty lines count, so that numbers are those an editor shows, and are not given.
 */
export interface Line {
  /** From 1. */
  readonly n: number;
  /** Without its end; null where it is longer than allowed. */
  readonly bytes: Buffer | null;
  readonly length: number;
}

export interface LineSplitter {
  /** The lines that ended in this chunk. They may share its memory. */
  push(chunk: Buffer): Line[];
  /** The last line, where it had no end of its own. */
  end(): Line[];
}

const LF = 0x0a;
const CR = 0x0d;
const BYTE_ORDER_MARK = Buffer.from([0xef, 0xbb, 0xbf]);

export function createLineSplitter(bytesMax: number): LineSplitter {
  let n = 0;
  let held: Buffer[] = [];
  let heldBytes = 0;
  /** Of the line that is coming in, dropped bytes included. */
  let length = 0;
  let tooLong = false;

  function take(piece: Buffer): void {
    length += piece.length;
    if (tooLong || piece.length === 0) return;
    // One more than allowed: it may be the CR of a CRLF.
    if (heldBytes + piece.length > bytesMax + BYTE_ORDER_MARK.length + 1) {
      tooLong = true;
      held = [];
      heldBytes = 0;
      return;
    }
    held.push(piece);
    heldBytes += piece.length;
  }

  function finish(): Line[] {
    n += 1;
    let bytes: Buffer | null = tooLong ? null : held.length === 1 && held[0] ? held[0] : Buffer.concat(held, heldBytes);
    if (bytes && n === 1 && bytes.subarray(0, 3).equals(BYTE_ORDER_MARK)) bytes = bytes.subarray(3);
    if (bytes && bytes.at(-1) === CR) bytes = bytes.subarray(0, -1);
    const line: Line =
      bytes && bytes.length <= bytesMax ? { n, bytes, length: bytes.length } : { n, bytes: null, length };
    held = [];
    heldBytes = 0;
    length = 0;
    tooLong = false;
    return line.length === 0 ? [] : [line];
  }

  return {
    push(chunk) {
      const lines: Line[] = [];
      let start = 0;
      for (let at = chunk.indexOf(LF); at !== -1; at = chunk.indexOf(LF, start)) {
        take(chunk.subarray(start, at));
        lines.push(...finish());
        start = at + 1;
      }
      // Not a view of the chunk: a short rest would keep all of it in memory.
      const rest = chunk.subarray(start);
      take(rest.length === chunk.length ? rest : Buffer.from(rest));
      return lines;
    },
    end: () => (length === 0 ? [] : finish()),
  };
}
