/** The parts of a multipart form, one after the other; also to its end where the caller goes away in the middle of it. */
import type { MultipartFile } from "@fastify/multipart";
import type { FastifyRequest } from "fastify";

import { ApiError } from "#contract/errors.ts";

import { answerEndOf } from "../plugins/answer-end.ts";

export interface PartsLimits {
  readonly parts: number;
  readonly files: number;
  readonly fieldNameSize: number;
  /** Of each; a part that is larger ends there and says so (`truncated`). */
  readonly fileSize: number;
}

/**
 * Every part is a stream of bytes, whatever it calls itself. The parser waits for ever for what a connection that closed
 * before it began would have brought: the end of that is told here. Throws ApiError(invalid_request, invalid_input).
 */
export async function* partsOf(request: FastifyRequest, limits: PartsLimits): AsyncGenerator<MultipartFile> {
  const { gone } = answerEndOf(request);
  let open: MultipartFile["file"] | undefined;
  const brokenOff = new Promise<never>((_resolve, reject) => {
    const breakOff = (): void => {
      const error = new ApiError("invalid_request", "the upload broke off");
      open?.destroy(error);
      reject(error);
    };
    if (gone.aborted) breakOff();
    else gone.addEventListener("abort", breakOff, { once: true });
  });
  brokenOff.catch(() => undefined); // told to whoever waits for a part, if anybody does
  const options = { isPartAFile: () => true, throwFileSizeLimit: false, limits };
  const parts = request.parts(options);
  for (;;) {
    const next = await Promise.race([parts.next(), brokenOff]).catch((error: unknown) => {
      throw formError(error, limits.parts);
    });
    if (next.done) return;
    const part: unknown = next.value;
    if (!isFile(part)) continue; // none is, see isPartAFile
    open = part.file;
    yield part;
  }
}

const isFile = (part: unknown): part is MultipartFile =>
  typeof part === "object" && part !== null && "type" in part && part.type === "file";

/** What @fastify/multipart and busboy throw, in our words. */
export function formError(error: unknown, partsMax: number): ApiError {
  if (error instanceof ApiError) return error;
  if (error instanceof Error && "code" in error) {
    if (error.code === "FST_PARTS_LIMIT" || error.code === "FST_FILES_LIMIT") {
      return new ApiError("invalid_input", `expected at most ${partsMax} parts in the form`);
    }
    if (error.code === "FST_PROTO_VIOLATION") return new ApiError("invalid_input", "a part has a forbidden name");
  }
  const reason = error instanceof Error ? error.message : String(error);
  return new ApiError("invalid_request", `expected a complete multipart/form-data body: ${reason}`, { cause: error });
}
