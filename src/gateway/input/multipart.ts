/**
 * Reads a multipart/form-data body into named byte strings. Parts may come in any order; what a route does not know,
 * and what comes twice, is refused, so that nothing the caller sent is silently ignored.
 */
import type { FastifyRequest } from "fastify";

import { ApiError } from "#contract/errors.ts";
import { BODY_BYTES_MAX, CANDIDATES_MAX } from "#contract/limits.ts";

import type { ByteBudget } from "./byte-budget.ts";
import { formError, partsOf } from "./parts.ts";

/** A text field, decoded; `params` is the largest, and a prompt with its JSON escapes fits many times over. */
const TEXT_BYTES_MAX = 16 * 1024;
/** One frame, every candidate and every text field there is, with room for the message to name the excess. */
const PARTS_MAX = CANDIDATES_MAX + 32;
const PART_NAME_BYTES_MAX = 100;

/** Which parts a route takes: `repeated` ones may come several times, in the order in which they are meant. */
export interface FormShape<Once extends string, Repeated extends string, Text extends string> {
  readonly once: readonly Once[];
  readonly repeated: readonly Repeated[];
  readonly texts: readonly Text[];
}

export interface Form<Once extends string, Repeated extends string, Text extends string> {
  file(name: Once): Buffer;
  /** One or more. */
  files(name: Once | Repeated): readonly Buffer[];
  /** Undefined when the field is absent or empty: an empty text field means "not given". */
  text(name: Text): string | undefined;
}

/**
 * Gives the form to `use`, and forgets it afterwards. Throws ApiError: 413 for a body over the limit, 400 and 422 for a
 * wrong form, 503 when too many bodies are held already.
 */
export async function withForm<Once extends string, Repeated extends string, Text extends string, T>(
  request: FastifyRequest,
  shape: FormShape<Once, Repeated, Text>,
  budget: ByteBudget,
  use: (form: Form<Once, Repeated, Text>) => Promise<T>,
): Promise<T> {
  let held = 0;
  const hold = (bytes: number): void => {
    if (held + bytes > BODY_BYTES_MAX) throw bodyTooLarge();
    budget.take(bytes);
    held += bytes;
  };
  try {
    return await use(formOf(await readParts(request, [...shape.once, ...shape.repeated, ...shape.texts], hold), shape));
  } finally {
    budget.give(held);
  }
}

function formOf<Once extends string, Repeated extends string, Text extends string>(
  parts: Parts,
  { repeated }: FormShape<Once, Repeated, Text>,
): Form<Once, Repeated, Text> {
  for (const [name, bodies] of parts) {
    if (bodies.length > 1 && !repeated.some((known) => known === name)) {
      throw new ApiError("invalid_input", `${name}: expected once, got ${bodies.length} parts of this name`);
    }
  }
  const required = (name: string): readonly [Buffer, ...Buffer[]] => {
    const bodies = parts.get(name);
    if (!bodies) throw new ApiError("invalid_input", `${name}: this part is required; got ${namesIn(parts)}`);
    return bodies;
  };
  return {
    file: (name) => required(name)[0],
    files: required,
    text(name) {
      const body = parts.get(name)?.[0];
      return body === undefined || body.length === 0 ? undefined : decodeText(body, name);
    },
  };
}

type Parts = ReadonlyMap<string, readonly [Buffer, ...Buffer[]]>;

const namesIn = (parts: Parts): string => (parts.size === 0 ? "an empty form" : [...parts.keys()].join(", "));

async function readParts(
  request: FastifyRequest,
  known: readonly string[],
  hold: (bytes: number) => void,
): Promise<Parts> {
  const parts = new Map<string, [Buffer, ...Buffer[]]>();
  try {
    // Every part is a stream of bytes, so that limits and UTF-8 are ours to check.
    const limits = {
      parts: PARTS_MAX,
      files: PARTS_MAX,
      fieldNameSize: PART_NAME_BYTES_MAX,
      fileSize: BODY_BYTES_MAX + 1,
    };
    for await (const part of partsOf(request, limits)) {
      const name = part.fieldname;
      if (!known.includes(name)) {
        throw new ApiError("invalid_input", `${JSON.stringify(name)}: unknown part; expected ${known.join(", ")}`);
      }
      const chunks: Buffer[] = [];
      for await (const chunk of part.file) {
        if (!Buffer.isBuffer(chunk)) throw new TypeError("multipart gave something else than bytes");
        hold(chunk.length);
        chunks.push(chunk);
      }
      const bodies = parts.get(name);
      if (bodies) bodies.push(Buffer.concat(chunks));
      else parts.set(name, [Buffer.concat(chunks)]);
    }
  } catch (error) {
    // What still arrives is read and dropped, so that the caller gets to see the answer.
    request.raw.unpipe();
    request.raw.resume();
    throw formError(error, PARTS_MAX);
  }
  return parts;
}

export function bodyTooLarge(bytesMax = BODY_BYTES_MAX): ApiError {
  const limit = bytesMax < 1024 * 1024 ? `${bytesMax / 1024} kB` : `${bytesMax / 1024 / 1024} MB`;
  return new ApiError("payload_too_large", `expected a body of at most ${limit}`);
}

/** Throws ApiError(invalid_input) on more than `bytesMax`, and on what is not UTF-8. */
export function decodeText(body: Buffer, name: string, bytesMax = TEXT_BYTES_MAX): string {
  if (body.length > bytesMax) {
    throw new ApiError("invalid_input", `${name}: expected at most ${bytesMax} bytes, got ${body.length}`);
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(body);
  } catch (error) {
    throw new ApiError("invalid_input", `${name}: expected UTF-8 text, got other bytes`, { cause: error });
  }
}
