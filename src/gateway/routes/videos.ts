/** Videos by signed link: no key, whole or in ranges, until the link expires. */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance } from "fastify";
import { Type } from "typebox";

import { ApiError } from "#contract/errors.ts";
import { parseRolloutId } from "#contract/ids.ts";
import { findVideoFiles } from "#rollouts/find.ts";
import { checkVideoLink } from "#rollouts/signed-url.ts";

import type { RouteParts } from "../route-parts.ts";
import { sendVideo } from "./send-video.ts";
import { signedVideo } from "./signed-video.ts";

const WHICH = { candidate: Type.Integer({ minimum: 0 }) };

export function addVideoRoute(bare: FastifyInstance, parts: RouteParts): void {
  const { db, clock, videoSecret } = parts;
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();

  app.get(
    "/v1/rollouts/:id/video",
    signedVideo(WHICH, { summary: "The video of a signed link", tags: ["predict"] }),
    async (request, reply) => {
      const rollout_id = parseRolloutId(request.params.id);
      if (!rollout_id) throw new ApiError("rollout_not_found", "no such rollout");
      const { candidate, expires, signature } = request.query;
      checkVideoLink(videoSecret, { rollout_id, candidate, expires }, signature, clock.now());

      const { keys, deleted } = await findVideoFiles(db, rollout_id);
      if (deleted) throw new ApiError("video_expired", "this video was deleted when its time was over (expires_at)");
      return sendVideo(parts, request, reply, {
        key: keys[candidate] ?? null,
        filename: `${rollout_id}_${candidate}.mp4`,
        expires,
        notStored: (cause) => new ApiError("rollout_not_found", "this video is not stored any more", { cause }),
      });
    },
  );
}
