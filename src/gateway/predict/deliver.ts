/**
 * Sends finished videos: one as `video/mp4`, a batch as a tar. A body that went out whole counts as delivered, and
 * that is stored before its last byte is sent: a caller that has it all and repeats its request wants a new rollout.
 */
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";

import type { FastifyReply, FastifyRequest } from "fastify";
import { pack } from "tar-stream";

import { BlobNotFound, type BlobStore } from "#blobs/blob-store.ts";
import { ApiError } from "#contract/errors.ts";
import type { RolloutId } from "#contract/ids.ts";
import { usdText } from "#contract/mils.ts";
import type { Database } from "#platform/database.ts";
import type { Log } from "#platform/log.ts";
import { markDelivered } from "#rollouts/find.ts";
import { engineWallMs } from "#rollouts/envelope.ts";
import type { Rollout } from "#rollouts/rollout.ts";

import { answerEndOf } from "../plugins/answer-end.ts";
import { beforeLastByte } from "./before-last-byte.ts";

export interface DeliveryParts {
  readonly db: Database;
  readonly blobs: BlobStore;
  readonly log: Log;
}

export function sendVideo(
  parts: DeliveryParts,
  rollout: Rollout,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<FastifyReply> {
  return whileStored(rollout, async () => {
    const [video] = await videosOf(parts.blobs, rollout);
    if (!video) throw new BlobNotFound(rollout.id);
    describe(reply, rollout);
    return reply
      .header("Content-Length", video.bytes)
      .type("video/mp4")
      .send(delivered(parts, rollout, request, videoOf(parts, video)));
  });
}

/** `rollout_000.mp4`… in submission order; the same rollout always gives the same bytes. */
export function sendTar(
  parts: DeliveryParts,
  rollout: Rollout,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<FastifyReply> {
  return whileStored(rollout, async () => {
    const videos = await videosOf(parts.blobs, rollout);
    describe(reply, rollout);
    reply.header("X-DreamEngine-Batch-Size", rollout.k);
    // A known length lets the client tell a broken connection from the end of the archive.
    return reply
      .header("Content-Length", tarBytes(videos))
      .type("application/x-tar")
      .send(delivered(parts, rollout, request, tarOf(parts, videos)));
  });
}

interface StoredVideo {
  readonly key: string;
  readonly bytes: number;
}

async function videosOf(blobs: BlobStore, { result }: Rollout): Promise<StoredVideo[]> {
  return Promise.all(
    (result?.video_keys ?? []).map(async (key) => {
      const info = await blobs.info(key);
      if (!info) throw new BlobNotFound(key);
      return { key, bytes: info.bytes };
    }),
  );
}

/** Retention deletes videos; a rollout found again later may have lost its own. */
async function whileStored<T>(rollout: Rollout, send: () => Promise<T>): Promise<T> {
  try {
    return await send();
  } catch (error) {
    if (!(error instanceof BlobNotFound)) throw error;
    if (rollout.files_deleted_at) {
      throw new ApiError(
        "video_expired",
        `the video of ${rollout.id} was deleted when its time was over (expires_at)`,
        {
          cause: error,
        },
      );
    }
    throw new ApiError("rollout_lost", `the video of ${rollout.id} is not stored any more`, { cause: error });
  }
}

function describe(reply: FastifyReply, rollout: Rollout): void {
  reply.headers({
    "X-DreamEngine-Rollout-Id": rollout.id,
    "X-DreamEngine-Frames": rollout.actions_per_candidate + 1,
    "X-DreamEngine-Engine-Wall-Ms": engineWallMs(rollout),
    "X-DreamEngine-Estimated-Charge-USD": usdText(rollout.charge_mils),
    "X-DreamEngine-Customer-Id": rollout.customer_id,
  });
  const score = rollout.result?.score;
  if (!score) return;
  reply.headers({
    "X-DreamEngine-PSNR-dB": score.psnr_db,
    "X-DreamEngine-SSIM": score.ssim,
    "X-DreamEngine-LPIPS": score.lpips,
  });
}

/** The body, which notes the delivery just before its end. */
function delivered(
  parts: DeliveryParts,
  { id }: Rollout,
  request: FastifyRequest,
  body: AsyncIterable<Uint8Array>,
): Readable {
  const { gone } = answerEndOf(request);
  const note = async (): Promise<void> => {
    if (gone.aborted) throw new Error(`the caller of ${id} went away`);
    await noteDelivery(parts, id);
  };
  return Readable.from(beforeLastByte(body, note), { objectMode: false });
}

/**
 * Never rejects: a database that breaks now may have noted it, and a caller who was told of an error would then have
 * paid for nothing. So the caller gets what is there; at worst it could get it a second time at no charge.
 */
export async function noteDelivery({ db, log }: Pick<DeliveryParts, "db" | "log">, id: RolloutId): Promise<void> {
  try {
    await markDelivered(db, id);
  } catch (error) {
    log.error({ err: error, rollout_id: id }, "could not note a delivery");
  }
}

const TAR_BLOCK_BYTES = 512;

/** A header and the padded content for each file, then two empty blocks (POSIX ustar). */
function tarBytes(videos: readonly StoredVideo[]): number {
  const blocks = videos.reduce((sum, { bytes }) => sum + 1 + Math.ceil(bytes / TAR_BLOCK_BYTES), 2);
  return blocks * TAR_BLOCK_BYTES;
}

/** Opened when the first of it is wanted: a body whose caller went away before is never read, nor closed. */
async function* videoOf({ blobs }: DeliveryParts, { key }: StoredVideo): AsyncGenerator<Uint8Array> {
  for await (const chunk of await blobs.stream(key)) yield chunk as Uint8Array; // no encoding is set
}

async function* tarOf({ blobs }: DeliveryParts, videos: readonly StoredVideo[]): AsyncGenerator<Uint8Array> {
  const tar = pack();
  const fill = async (): Promise<void> => {
    for (const [index, { key, bytes }] of videos.entries()) {
      const name = `rollout_${String(index).padStart(3, "0")}.mp4`;
      // A fixed time and owner, so that equal videos make equal archives.
      const entry = tar.entry({ name, size: bytes, mtime: new Date(0), mode: 0o644, uid: 0, gid: 0 });
      await pipeline(await blobs.stream(key), entry);
    }
    tar.finalize();
  };
  // Ends the iteration below with what went wrong; after a caller went away, nobody is left to be told.
  fill().catch((error: unknown) => tar.destroy(error instanceof Error ? error : new Error(String(error))));
  try {
    for await (const chunk of tar) yield chunk as Uint8Array; // nothing else comes out of a packer
  } finally {
    tar.destroy();
  }
}
