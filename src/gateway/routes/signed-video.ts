/** What the routes of videos by signed link have in common. */
import { type TProperties, Type } from "typebox";

import { ApiError } from "#contract/errors.ts";

const SIGNED = {
  expires: Type.Integer({ minimum: 0, description: "Epoch seconds." }),
  signature: Type.String({ maxLength: 200 }),
};

/** `which`: the parameters that say which of its videos. */
export function signedVideo<Which extends TProperties>(
  which: Which,
  about: { readonly summary: string; readonly description?: string; readonly tags: string[] },
) {
  const names = Object.keys(which).join(", ");
  return {
    config: { answers: { 200: "video/mp4", 206: "video/mp4" } },
    schema: {
      ...about,
      security: [],
      params: Type.Object({ id: Type.String() }),
      querystring: Type.Object({ ...which, ...SIGNED }),
    },
    // Its path without what signs it, or with something else: nobody is told more of a link that is not ours.
    schemaErrorFormatter: () =>
      new ApiError(
        "video_url_invalid",
        `expected a signed link with ${names}, expires and signature; use video_url exactly as it was returned`,
      ),
  };
}
