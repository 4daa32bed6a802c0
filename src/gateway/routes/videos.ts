/** Videos by signed link: no key, whole or in ranges, until the link expires. */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance } from "fastify";
import { Type } from "typebox";

import { BlobNotFound } from "#blobs/blob-store.ts";
import { ApiError } from "#contract/errors.ts";
import { parseRolloutId } from "#contract/ids.ts";
import { findVideoKeys } from "#rollouts/find.ts";
import { checkVideoLink } from "#rollouts/signed-url.ts";

import { parseRange } from "../input/range.ts";
import type { RouteParts } from "../route-parts.ts";

const Link = Type.Object({
  candidate: Type.Integer({ minimum: 0 }),
  expires: Type.Integer({ minimum: 0, description: "Epoch seconds." }),
  signature: Type.String({ maxLength: 200 }),
});

export function addVideoRoute(bare: FastifyInstance, { db, blobs, clock, videoSecret }: RouteParts): void {
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();

  app.get(
    "/v1/rollouts/:id/video",
    {
      config: { answers: { 200: "video/mp4", 206: "video/mp4" } },
      schema: {
        summary: "The video of a signed link",
        tags: ["predict"],
        security: [],
        params: Type.Object({ id: Type.String() }),
        querystring: Link,
      },
      // Its path without what signs it, or with something else: nobody is told more of a link that is not ours.
      schemaErrorFormatter: () =>
        new ApiError(
          "video_url_invalid",
          "expected a signed link with candidate, expires and signature; use video_url exactly as it was returned",
        ),
    },
    async (request, reply) => {
      const rollout_id = parseRolloutId(request.params.id);
      if (!rollout_id) throw new ApiError("rollout_not_found", "no such rollout");
      const { candidate, expires, signature } = request.query;
      checkVideoLink(videoSecret, { rollout_id, candidate, expires }, signature, clock.now());

      const key = (await findVideoKeys(db, rollout_id))[candidate];
      const video = key === undefined ? null : await blobs.info(key);
      if (!video) throw new ApiError("rollout_not_found", "this video is not stored any more");
      const range = parseRange(request.headers.range, video.bytes);
      const body = await blobs.stream(video.key, range ?? undefined).catch((error: unknown) => {
        // Deleted since we looked.
        if (!(error instanceof BlobNotFound)) throw error;
        throw new ApiError("rollout_not_found", "this video is not stored any more", { cause: error });
      });
      reply.headers({
        "Accept-Ranges": "bytes",
        "Cache-Control": `private, max-age=${Math.max(0, expires - Math.ceil(clock.now() / 1000))}, immutable`,
        "Content-Disposition": `inline; filename="${rollout_id}_${candidate}.mp4"`,
      });
      if (range) {
        reply.code(206).header("Content-Range", `bytes ${range.start}-${range.end}/${video.bytes}`);
      }
      const bytes = range ? range.end - range.start + 1 : video.bytes;
      return reply.header("Content-Length", bytes).type("video/mp4").send(body);
    },
  );
}
