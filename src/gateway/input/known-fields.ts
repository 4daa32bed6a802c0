/**
 * JSON bodies as they were sent. The schema's check turns `["a"]` into "a" and "7" into 7, as query strings need it, and
 * does not say which field is unknown; in a body that hides mistakes, and a mistyped `expires_at` would make a key that
 * never ends.
 */
import type { preValidationAsyncHookHandler } from "fastify";

import { ApiError } from "#contract/errors.ts";

interface Fields {
  readonly properties: Readonly<Record<string, { readonly type: "string" | "integer" }>>;
}

/** Of a body with other types in it: its fields' names alone. Throws ApiError(invalid_input). */
export function onlyFields({ properties }: { readonly properties: object }): preValidationAsyncHookHandler {
  const names = Object.keys(properties).join(", ");
  return async ({ body }) => {
    if (typeof body !== "object" || body === null || Array.isArray(body)) {
      throw new ApiError("invalid_input", `body: expected an object with ${names}, got ${shown(body ?? null)}`);
    }
    const unknown = Object.keys(body).find((field) => !Object.hasOwn(properties, field));
    if (unknown !== undefined) {
      throw new ApiError("invalid_input", `body.${unknown.slice(0, 60)}: there is no such field, expected ${names}`);
    }
  };
}

/** Runs before the schema's check, which goes on with lengths and what is required. Throws ApiError(invalid_input). */
export function knownFields({ properties }: Fields): preValidationAsyncHookHandler {
  const names = Object.keys(properties).join(", ");
  return async ({ body }) => {
    if (body === undefined || body === null) return;
    if (typeof body !== "object" || Array.isArray(body)) {
      throw new ApiError("invalid_input", `body: expected an object with ${names}, got ${shown(body)}`);
    }
    for (const [field, value] of Object.entries(body)) {
      const type = Object.hasOwn(properties, field) ? properties[field]?.type : undefined;
      if (type === undefined) {
        throw new ApiError("invalid_input", `body.${field.slice(0, 60)}: there is no such field, expected ${names}`);
      }
      if (typeof value !== (type === "integer" ? "number" : type)) {
        throw new ApiError("invalid_input", `body.${field}: expected ${ARTICLE[type]} ${type}, got ${shown(value)}`);
      }
    }
  };
}

const ARTICLE = { string: "a", integer: "an" } as const;

const shown = (value: unknown): string => JSON.stringify(value).slice(0, 60);
