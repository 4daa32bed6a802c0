/** `POST /v1/uploads`: a frame or actions that many rows of datasets may name. */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance } from "fastify";
import { Type } from "typebox";

import { ApiError } from "#contract/errors.ts";
import { storeUpload } from "#datasets/uploads.ts";

import { withForm } from "../input/multipart.ts";
import { identityOf } from "../plugins/keys.ts";
import { checkFormHeaders } from "../plugins/paid-form.ts";
import type { RouteParts } from "../route-parts.ts";

const UploadForm = Type.Object({
  file: Type.String({ format: "binary", description: "A PNG or JPEG, or a .npy array of actions; at most 32 MB." }),
});

const Upload = Type.Object(
  {
    id: Type.String({ examples: ["upload_0123456789abcdef0123456789abcdef"] }),
    object: Type.Literal("upload"),
    bytes: Type.Integer(),
    sha256: Type.String(),
    created: Type.Integer({ description: "Epoch seconds." }),
    expires_at: Type.Integer({ description: "Epoch seconds: when it is deleted. A row that runs later fails." }),
  },
  { description: "An upload" },
);

export function addUploadRoute(bare: FastifyInstance, parts: RouteParts): void {
  const { db, blobs, random, budget, keyed, payable, retentionMs } = parts;
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();

  app.post(
    "/v1/uploads",
    {
      onRequest: [...keyed, checkFormHeaders, (request) => payable.check(request)],
      config: { form: UploadForm },
      schema: {
        summary: "Upload a frame or actions for rows of datasets",
        description: "Its content is checked by the dataset that names it.",
        tags: ["datasets"],
        response: { 201: Upload },
      },
    },
    async (request, reply) => {
      const { customer_id } = identityOf(request);
      const upload = await withForm(request, { once: ["file"], repeated: [], texts: [] }, budget, async (form) => {
        const file = form.file("file");
        if (file.length === 0)
          throw new ApiError("invalid_input", "file: expected a PNG, a JPEG or a .npy array, got no bytes");
        return storeUpload({ sql: db, blobs, random }, customer_id, file);
      });
      const { id, bytes, sha256, created_at } = upload;
      const created = Math.floor(created_at.getTime() / 1000);
      const expires_at = Math.floor((created_at.getTime() + retentionMs) / 1000);
      reply.code(201);
      return { id, object: "upload" as const, bytes, sha256: sha256.toString("hex"), created, expires_at };
    },
  );
}
