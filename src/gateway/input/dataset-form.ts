/**
 * The form of a dataset: `params` as text, then one file, which is given on as it arrives and never held. What reads the
 * file slower than it comes slows the caller down.
 */
import type { MultipartFile } from "@fastify/multipart";
import type { FastifyRequest } from "fastify";

import { ApiError } from "#contract/errors.ts";
import { DATASET_BODY_BYTES_MAX } from "#contract/limits.ts";

import { bodyTooLarge, decodeText } from "./multipart.ts";
import { formError, partsOf } from "./parts.ts";

export interface DatasetForm {
  readonly params: string | undefined;
  readonly part: "manifest" | "archive";
  readonly chunks: AsyncIterable<Buffer>;
}

const PARAMS_BYTES_MAX = 64 * 1024;
const PART_NAME_BYTES_MAX = 100;
/** One more than there may be, for a message that says which it is. */
const PARTS_MAX = 3;
const LIMITS = {
  parts: PARTS_MAX,
  files: PARTS_MAX,
  fieldNameSize: PART_NAME_BYTES_MAX,
  fileSize: DATASET_BODY_BYTES_MAX,
};
const EXPECTED = 'expected "params" (optional), then one "manifest" or "archive"';

/** Throws ApiError: 400 and 422 for a wrong form, 413 for a body over the limit, and whatever `use` throws. */
export async function withDatasetForm<T>(request: FastifyRequest, use: (form: DatasetForm) => Promise<T>): Promise<T> {
  try {
    let params: string | undefined;
    let used: { readonly result: T } | undefined;
    for await (const part of partsOf(request, LIMITS)) {
      const name = part.fieldname;
      const file = wholeFile(part.file);
      if (used)
        throw new ApiError("invalid_input", `${EXPECTED}; got another part after the file: ${JSON.stringify(name)}`);
      if (name === "params") {
        if (params !== undefined)
          throw new ApiError("invalid_input", "params: expected once, got two parts of this name");
        params = decodeText(await textBytes(file), name, PARAMS_BYTES_MAX);
      } else if (name === "manifest" || name === "archive") {
        used = { result: await use({ params, part: name, chunks: file }) };
      } else {
        throw new ApiError("invalid_input", `${JSON.stringify(name)}: unknown part; ${EXPECTED}`);
      }
    }
    if (!used)
      throw new ApiError("invalid_input", `${EXPECTED}; got ${params === undefined ? "no parts" : "params alone"}`);
    return used.result;
  } catch (error) {
    // What still arrives is read and dropped, so that the caller gets to see the answer.
    request.raw.unpipe();
    request.raw.resume();
    throw error;
  }
}

async function* wholeFile(file: MultipartFile["file"]): AsyncGenerator<Buffer> {
  try {
    for await (const chunk of file) yield chunk as Buffer; // a stream without an encoding, so of bytes
  } catch (error) {
    throw formError(error, PARTS_MAX);
  }
  if (file.truncated) throw bodyTooLarge(DATASET_BODY_BYTES_MAX);
}

async function textBytes(file: AsyncIterable<Buffer>): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of file) {
    bytes += chunk.length;
    if (bytes > PARAMS_BYTES_MAX) {
      throw new ApiError("invalid_input", `params: expected at most ${PARAMS_BYTES_MAX} bytes, got more`);
    }
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}
