/**
 * Videos of datasets' rows by signed link, without a key: from the blob store where it signs links that lead to it, else
 * through us, whole or in ranges, until the link expires.
 */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance } from "fastify";
import { Type } from "typebox";

import { ApiError } from "#contract/errors.ts";
import { parseDatasetId } from "#contract/ids.ts";
import { VIDEO_URL_LIFETIME_MS } from "#contract/limits.ts";
import { findRowVideo } from "#datasets/find.ts";
import { checkRowVideoLink } from "#datasets/row-video-links.ts";

import type { RouteParts } from "../route-parts.ts";
import { sendVideo } from "./send-video.ts";
import { signedVideo } from "./signed-video.ts";

const WHICH = { row: Type.Integer({ minimum: 1 }) };

export function addDatasetVideoRoute(bare: FastifyInstance, parts: RouteParts): void {
  const { db, blobs, clock, videoSecret } = parts;
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();

  app.get(
    "/v1/datasets/:id/video",
    signedVideo(WHICH, {
      summary: "The video of a row, by its signed link",
      description: "302 with a link to the blob store, where it signs links; follow it.",
      tags: ["datasets"],
    }),
    async (request, reply) => {
      const dataset_id = parseDatasetId(request.params.id);
      if (!dataset_id) throw new ApiError("dataset_not_found", "no such dataset");
      const { row, expires, signature } = request.query;
      checkRowVideoLink(videoSecret, { dataset_id, n: row, expires }, signature, clock.now());
      const video = await findRowVideo(db, dataset_id, row);
      if (video?.deleted) {
        throw new ApiError("video_expired", "this video was deleted when its time was over (expires_at)");
      }
      const filename = `${video?.row_id}.mp4`;
      // A link for GET is signed for nothing else.
      if (video?.key && request.method === "GET") {
        const signed = await blobs.presignedUrl?.(video.key, { lifetimeMs: VIDEO_URL_LIFETIME_MS, filename });
        // Kept by nobody: the next one who asks here gets a fresh one.
        if (signed) return reply.header("Cache-Control", "no-store").redirect(signed, 302);
      }
      return sendVideo(parts, request, reply, {
        key: video?.key ?? null,
        filename,
        expires,
        notStored: (cause) => new ApiError("dataset_not_found", "this video is not stored any more", { cause }),
      });
    },
  );
}
