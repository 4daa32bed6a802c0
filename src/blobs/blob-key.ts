/** What may be asked of a blob store, the same for every one: a key that one refuses must not be stored by another. */

const KEY_CHARS_MAX = 200;
/** No segment starts with a dot: that excludes `..`, `.` and what a store keeps beside the blobs. */
const SEGMENT = "[A-Za-z0-9_-][A-Za-z0-9_.-]*";
const KEY = new RegExp(`^${SEGMENT}(/${SEGMENT})*$`);
const PREFIX = new RegExp(`^(${SEGMENT}/)*(${SEGMENT})?$`);

export interface ByteRange {
  readonly start: number;
  /** Inclusive. */
  readonly end: number;
}

export const isBlobKey = (text: string): boolean => text.length <= KEY_CHARS_MAX && KEY.test(text);

/** The key itself; throws a RangeError for what is none. */
export function checkedKey(key: string): string {
  if (isBlobKey(key)) return key;
  throw new RangeError(
    `expected a blob key of at most ${KEY_CHARS_MAX} characters, slash-separated segments of letters, digits, ` +
      `"_", "." and "-" that do not start with a dot; got ${JSON.stringify(key.slice(0, KEY_CHARS_MAX))}`,
  );
}

/** Throws a RangeError for what no key can begin with. */
export function checkPrefix(prefix: string): void {
  if (!PREFIX.test(prefix)) throw new RangeError(`not the beginning of a blob key: ${JSON.stringify(prefix)}`);
}

/** Throws a RangeError for a range without a byte in it. */
export function checkRange({ start, end }: ByteRange): void {
  if (Number.isSafeInteger(start) && Number.isSafeInteger(end) && start >= 0 && start <= end) return;
  throw new RangeError(`expected a range from a first to a last byte, got ${start} to ${end}`);
}
