/** What a dataset's owner does with it: pause, resume, cancel, retry, and take its results. */
import { Readable } from "node:stream";

import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { type Static, Type } from "typebox";

import { ApiError } from "#contract/errors.ts";
import { type DatasetId, parseDatasetId } from "#contract/ids.ts";
import { cancelByOwner, type Owner, pauseByOwner, resumeByOwner, retryByOwner } from "#datasets/control.ts";
import { budgetOf } from "#datasets/create-params.ts";
import type { Dataset } from "#datasets/dataset.ts";
import { DatasetEnvelope, datasetEnvelope } from "#datasets/envelope.ts";
import { datasetContext, findDataset } from "#datasets/find.ts";
import type { DatasetRow } from "#datasets/row.ts";
import { type ResultFormat, resultPages, resultsJsonl } from "#datasets/results.ts";
import { resultsParquet } from "#datasets/results-parquet.ts";
import { createRowVideoLinks } from "#datasets/row-video-links.ts";

import { knownFields } from "../input/known-fields.ts";
import { identityOf } from "../plugins/keys.ts";
import type { RouteParts } from "../route-parts.ts";

const ById = Type.Object({ id: Type.String() });

const ResumeBody = Type.Object(
  {
    budget_mils: Type.Optional(Type.Integer({ description: "The new budget; 1 mil = $0.0001." })),
    budget_usd: Type.Optional(Type.Union([Type.Number(), Type.String()], { description: "The same in dollars." })),
  },
  { additionalProperties: false },
);

const ResultsQuery = Type.Object({
  format: Type.Union([Type.Literal("jsonl"), Type.Literal("parquet")], { default: "jsonl" }),
  links: Type.Union([Type.Literal("true"), Type.Literal("false")], {
    default: "true",
    description: "false leaves `video_url` out: a signed link is not for a file that is kept or published.",
  }),
});

const MEDIA_TYPE_OF = {
  jsonl: "application/x-ndjson; charset=utf-8",
  parquet: "application/vnd.apache.parquet",
} as const satisfies Record<ResultFormat, string>;

export function addDatasetActionRoutes(bare: FastifyInstance, parts: RouteParts): void {
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();
  const { db, clock, keyed, publicUrl, queues, models, retentionMs, idleMs, quotas } = parts;
  const links = createRowVideoLinks(parts.videoSecret);

  /** The state it leads to is committed; a runner that sleeps is woken. */
  async function answer(request: FastifyRequest, dataset: Dataset): Promise<DatasetEnvelope> {
    await queues.signals.publish({ kind: "dataset" });
    const around = { retentionMs, idleMs, publicUrl: publicUrl(request), nowMs: clock.now() };
    return datasetEnvelope(dataset, await datasetContext(db, dataset, around));
  }

  const actions = [
    {
      name: "pause",
      summary: "Pause a dataset: what runs is finished, nothing new begins",
      act: (id: DatasetId, owner: Owner) => pauseByOwner(db, id, owner),
    },
    {
      name: "cancel",
      summary: "Cancel a dataset: what runs is stopped and refunded, what waits never runs",
      act: (id: DatasetId, owner: Owner) => cancelByOwner(db, id, owner),
    },
    {
      name: "retry",
      summary: "Run the rows again that failed, expired or were cancelled",
      act: (id: DatasetId, owner: Owner) =>
        retryByOwner(db, id, owner, new Date(clock.now() - retentionMs), quotas.datasets),
    },
  ];
  for (const { name, summary, act } of actions) {
    app.post(
      `/v1/datasets/:id/${name}`,
      {
        onRequest: [...keyed],
        schema: { summary, tags: ["datasets"], params: ById, response: { 200: DatasetEnvelope } },
      },
      async (request) => answer(request, await act(idOf(request.params.id), identityOf(request))),
    );
  }

  app.post(
    "/v1/datasets/:id/resume",
    {
      onRequest: [...keyed],
      // A null that the schema's check took for 0 would be a budget of nothing.
      preValidation: knownFields(ResumeBody),
      schema: {
        summary: "Go on with a paused dataset, or start a ready one; your key pays from now on",
        tags: ["datasets"],
        params: ById,
        body: Type.Union([ResumeBody, Type.Null()]),
        response: { 200: DatasetEnvelope },
      },
    },
    async (request) => {
      const id = idOf(request.params.id);
      const budget = budgetOf(request.body ?? {}) ?? undefined;
      const owner = identityOf(request);
      const found = await findDataset(db, id, owner.customer_id);
      if (found && !models.find(found.model)) {
        throw new ApiError("wrong_state", `this server does not have its model ${found.model} any more`);
      }
      return answer(request, await resumeByOwner(db, id, owner, budget));
    },
  );

  // Typed by its query alone: the answer is a stream.
  bare.get<{ Params: Static<typeof ById>; Querystring: Static<typeof ResultsQuery> }>(
    "/v1/datasets/:id/results",
    {
      onRequest: [...keyed],
      schema: {
        summary: "What became of every row: one record each",
        description:
          "JSON lines, or Parquet. Also before the end, as things are then. docs/datasets.md names the fields.",
        tags: ["datasets"],
        params: ById,
        querystring: ResultsQuery,
        response: {
          200: {
            description: "One record for each row, in the order of the manifest",
            content: {
              "application/x-ndjson": { schema: Type.String() },
              "application/vnd.apache.parquet": { schema: Type.String() },
            },
          },
        },
      },
    },
    async (request, reply) => {
      const { format } = request.query;
      const withLinks = request.query.links === "true";
      const dataset = await findDataset(db, idOf(request.params.id), identityOf(request).customer_id);
      if (!dataset) throw new ApiError("dataset_not_found", "no such dataset of yours");
      if (dataset.state === "receiving") {
        throw new ApiError("wrong_state", "the dataset is still receiving its rows; expected one that has all of them");
      }
      const base = publicUrl(request);
      const filesDeleted = dataset.files_deleted_at !== null;
      const linkOf = (row: DatasetRow): string | null =>
        links.of(row, { publicUrl: base, nowMs: clock.now(), filesDeleted })?.url ?? null;
      const pages = resultPages(db, dataset.id, withLinks ? { linkOf } : {});
      const pieces = format === "jsonl" ? resultsJsonl(pages) : resultsParquet(pages, { withLinks });
      return reply
        .header("Content-Disposition", `attachment; filename="${dataset.id}.${format}"`)
        .type(MEDIA_TYPE_OF[format])
        .send(Readable.from(pieces, { objectMode: false }));
    },
  );
}

function idOf(text: string): DatasetId {
  const id = parseDatasetId(text);
  if (id) return id;
  throw new ApiError("dataset_not_found", "no such dataset of yours; expected dataset_ and 32 hexadecimal digits");
}
