/** A stored video as an answer: whole or in a range, to be kept by its caller for as long as its link lasts. */
import type { FastifyReply, FastifyRequest } from "fastify";

import { BlobNotFound, type BlobStore } from "#blobs/blob-store.ts";
import type { ApiError } from "#contract/errors.ts";
import type { Clock } from "#platform/clock.ts";

import { parseRange } from "../input/range.ts";

export interface SentVideo {
  /** Null: there is none. */
  readonly key: string | null;
  readonly filename: string;
  /** Of its link, epoch seconds. */
  readonly expires: number;
  readonly notStored: (cause?: unknown) => ApiError;
}

/** Throws `notStored`, or ApiError(range_not_satisfiable). */
export async function sendVideo(
  { blobs, clock }: { readonly blobs: BlobStore; readonly clock: Clock },
  request: FastifyRequest,
  reply: FastifyReply,
  { key, filename, expires, notStored }: SentVideo,
): Promise<FastifyReply> {
  const video = key === null ? null : await blobs.info(key);
  if (!video) throw notStored();
  const range = parseRange(request.headers.range, video.bytes);
  const body = await blobs.stream(video.key, range ?? undefined).catch((error: unknown) => {
    // Deleted since we looked.
    throw error instanceof BlobNotFound ? notStored(error) : error;
  });
  reply.headers({
    "Accept-Ranges": "bytes",
    "Cache-Control": `private, max-age=${Math.max(0, expires - Math.ceil(clock.now() / 1000))}, immutable`,
    "Content-Disposition": `inline; filename="${filename}"`,
  });
  if (range) reply.code(206).header("Content-Range", `bytes ${range.start}-${range.end}/${video.bytes}`);
  const bytes = range ? range.end - range.start + 1 : video.bytes;
  return reply.header("Content-Length", bytes).type("video/mp4").send(body);
}
