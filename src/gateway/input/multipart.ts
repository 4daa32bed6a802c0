/**
 * Reads a multipart/form-data body into named byte strings. Parts may come in any order; what a route does not know,
 * and what comes twice, is refused, so that nothing the caller sent is silently ignored.
 */
import type { FastifyRequest } from "fastify";

import { ApiError } from "#contract/errors.ts";
import { BODY_BYTES_MAX, CANDIDATES_MAX } from "#contract/limits.ts";

/** A text field, decoded; `params` is the largest, and a prompt with its JSON escapes fits many times over. */
const TEXT_BYTES_MAX = 16 * 1024;
/** One frame, every candidate and every text field there is, with room for the message to name the excess. */
const PARTS_MAX = CANDIDATES_MAX + 32;
const PART_NAME_BYTES_MAX = 100;

/** Which parts a route takes: `many` may be repeated, in the order in which they are meant. */
export interface FormShape<One extends string, Many extends string, Text extends string> {
  readonly files: readonly One[];
  readonly repeatedFiles: readonly Many[];
  readonly texts: readonly Text[];
}

export interface Form<One extends string, Many extends string, Text extends string> {
  file(name: One): Buffer;
  repeatedFile(name: Many): readonly Buffer[];
  /** Undefined when the field is absent or empty: an empty text field means "not given". */
  text(name: Text): string | undefined;
}

/** Throws ApiError: 413 for a body over the limit, 415 for another content type, 400 and 422 for a wrong form. */
export async function readForm<One extends string, Many extends string, Text extends string>(
  request: FastifyRequest,
  shape: FormShape<One, Many, Text>,
): Promise<Form<One, Many, Text>> {
  const parts = await readParts(request, [...shape.files, ...shape.repeatedFiles, ...shape.texts]);
  for (const [name, bodies] of parts) {
    if (bodies.length > 1 && !shape.repeatedFiles.some((repeated) => repeated === name)) {
      throw new ApiError("invalid_input", `${name}: expected once, got ${bodies.length} parts of this name`);
    }
  }
  const required = (name: string): readonly Buffer[] => {
    const bodies = parts.get(name);
    if (!bodies) throw new ApiError("invalid_input", `${name}: this part is required; got ${namesIn(parts)}`);
    return bodies;
  };
  return {
    file: (name) => required(name)[0] ?? Buffer.alloc(0),
    repeatedFile: (name) => required(name),
    text(name) {
      const body = parts.get(name)?.[0];
      return body === undefined || body.length === 0 ? undefined : decodeText(body, name);
    },
  };
}

type Parts = ReadonlyMap<string, readonly Buffer[]>;

const namesIn = (parts: Parts): string => (parts.size === 0 ? "an empty form" : [...parts.keys()].join(", "));

async function readParts(request: FastifyRequest, known: readonly string[]): Promise<Parts> {
  const parts = new Map<string, Buffer[]>();
  let total = 0;
  try {
    const options = {
      // Every part is a stream of bytes, so that limits and UTF-8 are ours to check, whatever a part calls itself.
      isPartAFile: () => true,
      throwFileSizeLimit: false,
      limits: { parts: PARTS_MAX, files: PARTS_MAX, fieldNameSize: PART_NAME_BYTES_MAX, fileSize: BODY_BYTES_MAX + 1 },
    };
    for await (const part of request.parts(options)) {
      if (part.type !== "file") continue; // none is, see isPartAFile
      const name = part.fieldname;
      if (!known.includes(name)) {
        throw new ApiError("invalid_input", `${JSON.stringify(name)}: unknown part; expected ${known.join(", ")}`);
      }
      const chunks: Buffer[] = [];
      for await (const chunk of part.file) {
        if (!Buffer.isBuffer(chunk)) throw new TypeError("multipart gave something else than bytes");
        total += chunk.length;
        if (total > BODY_BYTES_MAX) throw bodyTooLarge();
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
    throw formError(error);
  }
  return parts;
}

/** What @fastify/multipart and busboy throw, in our words. */
function formError(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  if (error instanceof Error && "code" in error) {
    if (error.code === "FST_PARTS_LIMIT" || error.code === "FST_FILES_LIMIT") {
      return new ApiError("invalid_input", `expected at most ${PARTS_MAX} parts in the form`);
    }
    if (error.code === "FST_PROTO_VIOLATION") return new ApiError("invalid_input", "a part has a forbidden name");
  }
  const reason = error instanceof Error ? error.message : String(error);
  return new ApiError("invalid_request", `expected a complete multipart/form-data body: ${reason}`, { cause: error });
}

export function bodyTooLarge(): ApiError {
  return new ApiError("payload_too_large", `expected a body of at most ${BODY_BYTES_MAX / 1024 / 1024} MB`);
}

function decodeText(body: Buffer, name: string): string {
  if (body.length > TEXT_BYTES_MAX) {
    throw new ApiError("invalid_input", `${name}: expected at most ${TEXT_BYTES_MAX} bytes, got ${body.length}`);
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(body);
  } catch (error) {
    throw new ApiError("invalid_input", `${name}: expected UTF-8 text, got other bytes`, { cause: error });
  }
}
