/** JSON objects from outside, field by field: strict, with messages that say what was expected and what came. */
import { ApiError } from "#contract/errors.ts";
import { DATASET_METADATA_BYTES_MAX } from "#contract/limits.ts";

export type Fields = Readonly<Record<string, unknown>>;

/**
 * The fields of a JSON object; those that are null count as not given. A `seed` of the object itself keeps its digits as
 * text: a JavaScript number would round it past 2^53. Throws ApiError(invalid_input).
 */
export function parseFields(text: string, known: readonly string[], where: string): Fields {
  const value = parseObject(text, where);
  const fields: Record<string, unknown> = {};
  for (const [name, field] of Object.entries(value)) {
    if (!known.includes(name)) {
      if (name === "score") throw notScored(where);
      throw new ApiError("invalid_input", `${where}unknown field ${shown(name)}; expected ${known.join(", ")}`);
    }
    if (field !== null) fields[name] = field;
  }
  if (typeof fields["seed"] === "number") fields["seed"] = seedDigits(text, where);
  return fields;
}

const notScored = (where: string): ApiError =>
  new ApiError(
    "not_supported",
    `${where}score: rows of a dataset are not scored; POST /v1/rollouts scores one rollout`,
  );

function parseObject(text: string, where: string): object {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    const reason = error instanceof Error ? error.message.slice(0, REASON_CHARS_MAX) : String(error);
    throw new ApiError("invalid_input", `${where}expected a JSON object, got text that is not JSON (${reason})`, {
      cause: error,
    });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new ApiError("invalid_input", `${where}expected a JSON object, got ${shown(value)}`);
  }
  return value;
}

/** JSON.parse repeats the beginning of the text in its message. */
const REASON_CHARS_MAX = 120;

/** As written; of several `seed`s in one object the last counts, as everywhere in JSON. */
function seedDigits(text: string, where: string): string | undefined {
  const found: { readonly holder: unknown; readonly source: string }[] = [];
  try {
    // The third argument (ECMAScript "JSON.parse source text access") is not in TypeScript's library yet.
    const root: unknown = JSON.parse(text, function (
      this: unknown,
      key,
      value: unknown,
      context?: { source?: string },
    ) {
      if (key === "seed" && context?.source !== undefined) found.push({ holder: this, source: context.source });
      return value;
    } as (this: unknown, key: string, value: unknown) => unknown);
    return found.findLast(({ holder }) => holder === root)?.source;
  } catch (error) {
    // The text was parsed before: what is left is the stack, by thousands of brackets within each other.
    if (!(error instanceof RangeError)) throw error;
    throw new ApiError("invalid_input", `${where}expected fewer levels of nesting`, { cause: error });
  }
}

const METADATA_DEPTH_MAX = 16;

/** An object that PostgreSQL can store as it is. Throws ApiError(invalid_input). */
export function metadataOf(value: unknown, where: string): Fields {
  if (value === undefined) return {};
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new ApiError("invalid_input", `${where}: expected a JSON object, got ${shown(value)}`);
  }
  checkStorable(value, where, 1);
  const bytes = Buffer.byteLength(JSON.stringify(value));
  if (bytes > DATASET_METADATA_BYTES_MAX) {
    throw new ApiError(
      "invalid_input",
      `${where}: expected at most ${DATASET_METADATA_BYTES_MAX} bytes of JSON, got ${bytes}`,
    );
  }
  return value as Fields; // an object that JSON.parse made
}

function checkStorable(value: unknown, where: string, depth: number): void {
  if (typeof value === "string" && !isStorableText(value)) {
    throw new ApiError("invalid_input", `${where}: expected text without NUL characters and lone surrogates`);
  }
  if (typeof value !== "object" || value === null) return;
  if (depth > METADATA_DEPTH_MAX) {
    throw new ApiError("invalid_input", `${where}: expected at most ${METADATA_DEPTH_MAX} levels of nesting`);
  }
  for (const [key, inner] of Object.entries(value)) {
    checkStorable(key, where, depth);
    checkStorable(inner, where, depth + 1);
  }
}

/** What neither PostgreSQL's text nor its JSON takes. */
export const isStorableText = (text: string): boolean => !text.includes("\0") && text.isWellFormed();

/** How much of a reason is kept. */
const MESSAGE_CHARS_MAX = 500;

/** A message as it can be stored; it may repeat what came in. */
export const storable = (message: string): string =>
  message.replaceAll("\0", "\uFFFD").slice(0, MESSAGE_CHARS_MAX).toWellFormed();

/** How much of a wrong value a message repeats. */
const SHOWN_CHARS_MAX = 60;

export function shown(value: unknown): string {
  const text = jsonText(value);
  return text.length > SHOWN_CHARS_MAX ? `${text.slice(0, SHOWN_CHARS_MAX)}…` : text;
}

function jsonText(value: unknown): string {
  try {
    return JSON.stringify(value) ?? String(value);
  } catch (error) {
    // JSON.parse reads nesting of any depth, JSON.stringify has the stack to end it.
    if (error instanceof RangeError) return "too many levels of nesting";
    throw error;
  }
}
