/**
 * JSON as it came over the wire and back out again. A seed is a 64-bit integer, which JavaScript's numbers would round:
 * integers past 2^53 are read as `bigint` and printed digit by digit.
 */

/** What a reviver is told of its value's own text (ECMAScript's JSON source text access; the types do not know it yet). */
type ReviveWithSource = (key: string, value: unknown, context: { readonly source?: string }) => unknown;
const parse = JSON.parse as (text: string, revive: ReviveWithSource) => unknown;
/** Text that is printed as it is (the same proposal). */
const rawJson = (JSON as unknown as { rawJSON: (text: string) => unknown }).rawJSON;

/** Throws SyntaxError on text that is not JSON. */
export function parseWireJson(text: string): unknown {
  return parse(text, (_key, value, { source }) =>
    typeof value === "number" && !Number.isSafeInteger(value) && source !== undefined && /^-?\d+$/.test(source)
      ? BigInt(source)
      : value,
  );
}

export function wireJsonText(value: unknown, indent = 0): string {
  return JSON.stringify(
    value,
    (_key, item: unknown) => (typeof item === "bigint" ? rawJson(String(item)) : item),
    indent,
  );
}
