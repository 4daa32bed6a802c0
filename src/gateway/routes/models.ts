/** The catalogue. It needs no key; prices are the list's. */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { Type } from "typebox";

import { mils, usdNumber } from "#contract/mils.ts";

import { ModelEntry, modelEntry } from "../catalogue.ts";
import type { Model } from "../models.ts";
import type { RouteParts } from "../route-parts.ts";

export function addModelRoutes(bare: FastifyInstance, parts: RouteParts): void {
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();
  const { models, status, baseModel, publicUrl } = parts;

  async function entryOf(model: Model, request: FastifyRequest): Promise<ModelEntry> {
    const [price, pool] = await Promise.all([status.listPriceMils(), status.poolOf(model.slug)]);
    return modelEntry(model, {
      activeSlug: baseModel(request).slug,
      publicUrl: publicUrl(request),
      price_mils_per_frame: price,
      status: pool,
    });
  }
  const entries = (request: FastifyRequest): Promise<ModelEntry[]> =>
    Promise.all(models.all.map((model) => entryOf(model, request)));

  app.get(
    "/v1/models",
    {
      schema: {
        summary: "Every model of this server",
        tags: ["models"],
        security: [],
        response: { 200: Type.Object({ object: Type.Literal("list"), data: Type.Array(ModelEntry) }) },
      },
    },
    async (request) => ({ object: "list" as const, data: await entries(request) }),
  );

  app.get(
    "/v1/models/:slug",
    {
      schema: {
        summary: "One model",
        tags: ["models"],
        security: [],
        params: Type.Object({ slug: Type.String() }),
        response: { 200: ModelEntry },
      },
    },
    async (request) => entryOf(models.ofBaseUrl(request.params.slug), request),
  );

  app.get(
    "/v1/specs",
    {
      schema: {
        summary: "Every model, with prices",
        tags: ["models"],
        security: [],
        response: {
          200: Type.Object({ specs: Type.Array(ModelEntry), default_price_usd_per_frame: Type.Number() }),
        },
      },
    },
    async (request) => ({
      specs: await entries(request),
      default_price_usd_per_frame: usdNumber(mils(await status.listPriceMils())),
    }),
  );
}
