/** `/v1/uploads`: frames and actions that many rows of datasets may name. */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance } from "fastify";
import { type Static, Type } from "typebox";

import { epochS } from "#contract/epoch.ts";
import { ApiError } from "#contract/errors.ts";
import { parseUploadId, type UploadId } from "#contract/ids.ts";
import { LIST_PAGE_DEFAULT, LIST_PAGE_MAX } from "#contract/limits.ts";
import { deleteUpload, listUploads, storeUpload, type Upload as StoredUpload } from "#datasets/uploads.ts";

import { knownParameters } from "../input/known-fields.ts";
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

const ListQuery = Type.Object({
  limit: Type.Integer({ minimum: 1, maximum: LIST_PAGE_MAX, default: LIST_PAGE_DEFAULT }),
  after: Type.Optional(Type.String({ description: "`next` of the page before." })),
});

const UploadList = Type.Object({
  object: Type.Literal("list"),
  data: Type.Array(Upload),
  has_more: Type.Boolean(),
  next: Type.Union([Type.String(), Type.Null()], { description: "`after` of the next page." }),
});

/** The same for another customer's: nobody learns which ids exist. */
const notFound = (): ApiError =>
  new ApiError("upload_not_found", "no such upload of yours; expected upload_ and 32 hexadecimal digits");

function idOf(text: string): UploadId {
  const id = parseUploadId(text);
  if (!id) throw notFound();
  return id;
}

export function addUploadRoutes(bare: FastifyInstance, parts: RouteParts): void {
  const { db, blobs, random, budget, keyed, payable, retentionMs, quotas } = parts;
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();

  const bodyOf = ({ id, bytes, sha256, created_at }: StoredUpload): Static<typeof Upload> => ({
    id,
    object: "upload",
    bytes,
    sha256: sha256.toString("hex"),
    created: epochS(created_at),
    expires_at: epochS(created_at, retentionMs),
  });

  app.post(
    "/v1/uploads",
    {
      onRequest: [...keyed, checkFormHeaders, (request) => payable.check(request)],
      config: { form: UploadForm },
      schema: {
        summary: "Upload a frame or actions for rows of datasets",
        description:
          "Its content is checked by the dataset that names it. How many, and how much, a customer may keep: docs/datasets.md (409).",
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
        return storeUpload({ db, blobs, random, quotas: quotas.uploads }, customer_id, file);
      });
      reply.code(201);
      return bodyOf(upload);
    },
  );

  app.get(
    "/v1/uploads",
    {
      onRequest: [...keyed],
      preValidation: knownParameters(ListQuery),
      schema: {
        summary: "Your uploads, newest first",
        tags: ["datasets"],
        querystring: ListQuery,
        response: { 200: UploadList },
      },
    },
    async (request) => {
      const { limit, after } = request.query;
      const { customer_id } = identityOf(request);
      const page = await listUploads(db, customer_id, { limit, after: after === undefined ? null : idOf(after) });
      if (!page) throw notFound();
      const { data, has_more } = page;
      const next = has_more ? (data.at(-1)?.id ?? null) : null;
      return { object: "list" as const, data: data.map(bodyOf), has_more, next };
    },
  );

  app.delete(
    "/v1/uploads/:id",
    {
      onRequest: [...keyed],
      schema: {
        summary: "Delete an upload of yours; rows that name it and have not begun will fail, at no charge",
        tags: ["datasets"],
        params: Type.Object({ id: Type.String() }),
        response: {
          200: Type.Object({ id: Type.String(), object: Type.Literal("upload"), deleted: Type.Literal(true) }),
        },
      },
    },
    async (request) => {
      const id = idOf(request.params.id);
      if (!(await deleteUpload({ db, blobs }, identityOf(request).customer_id, id))) throw notFound();
      return { id, object: "upload" as const, deleted: true as const };
    },
  );
}
