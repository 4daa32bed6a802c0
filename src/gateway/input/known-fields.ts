/**
 * JSON bodies and query strings as they were sent. The schema's check turns `["a"]` into "a" and "7" into 7, as query strings need it, and
 * does not say which field is unknown; in a body that hides mistakes, and a mistyped `expires_at` would make a key that
 * never ends.
 */
import type { preValidationAsyncHookHandler } from "fastify";

import { ApiError } from "#contract/errors.ts";

type Json = "string" | "integer" | "number" | "boolean" | "array" | "null";

/**
 * Runs before the schema's check, which goes on with lengths, members and what is required. Throws
 * ApiError(invalid_input).
 */
export function knownFields(
  { properties }: { readonly properties: Readonly<Record<string, object>> },
  { mayBeAbsent = true }: { readonly mayBeAbsent?: boolean } = {},
): preValidationAsyncHookHandler {
  const names = Object.keys(properties).join(", ");
  const typesOf = new Map(Object.entries(properties).map(([field, schema]) => [field, typesIn(schema)]));
  return async ({ body = null }) => {
    if (body === null && mayBeAbsent) return;
    if (typeof body !== "object" || body === null || Array.isArray(body)) {
      throw new ApiError("invalid_input", `body: expected an object with ${names}, got ${shown(body)}`);
    }
    for (const [field, value] of Object.entries(body)) {
      const types = typesOf.get(field);
      if (types === undefined) {
        throw new ApiError("invalid_input", `body.${field.slice(0, 60)}: there is no such field, expected ${names}`);
      }
      if (!types.some((type) => isOf(type, value))) {
        const expected = types.map((type) => NAMED[type]).join(" or ");
        throw new ApiError("invalid_input", `body.${field}: expected ${expected}, got ${shown(value)}`);
      }
    }
  };
}

/**
 * The same for what is behind the `?`: a filter that is mistyped, and passed over, would show what it should keep out.
 * Throws ApiError(invalid_input).
 */
export function knownParameters({
  properties,
}: {
  readonly properties: Readonly<Record<string, object>>;
}): preValidationAsyncHookHandler {
  const names = Object.keys(properties);
  return async ({ query }) => {
    const unknown = Object.keys(query ?? {}).find((name) => !names.includes(name));
    if (unknown === undefined) return;
    const expected = names.join(", ");
    throw new ApiError("invalid_input", `${unknown.slice(0, 60)}: there is no such parameter, expected ${expected}`);
  };
}

/** Of a field's JSON schema. */
function typesIn(schema: object): readonly Json[] {
  const { type, anyOf = [] } = schema as {
    readonly type?: Json | readonly Json[];
    readonly anyOf?: readonly object[];
  };
  const types = type === undefined ? anyOf.flatMap(typesIn) : [type].flat();
  if (types.length === 0) throw new Error("the schema of a field says no type to check it by");
  return types;
}

const NAMED = {
  string: "a string",
  integer: "an integer",
  number: "a number",
  boolean: "true or false",
  array: "an array",
  null: "null",
} as const satisfies Record<Json, string>;

/** Every number passes as an integer: whether it is one, the schema says. */
function isOf(type: Json, value: unknown): boolean {
  if (type === "null") return value === null;
  if (type === "array") return Array.isArray(value);
  return typeof value === (type === "integer" ? "number" : type);
}

const shown = (value: unknown): string => JSON.stringify(value).slice(0, 60);
