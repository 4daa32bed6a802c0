/** Datasets by id: shown, waited for, listed, and their rows. Made in dataset-create.ts. */
import { setTimeout as delay } from "node:timers/promises";

import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { type TSchema, Type } from "typebox";

import { DATASET_STATES, ROW_STATES } from "#contract/datasets.ts";
import { ApiError } from "#contract/errors.ts";
import { parseDatasetId } from "#contract/ids.ts";
import {
  DATASET_ROWS_PAGE_DEFAULT,
  DATASET_ROWS_PAGE_MAX,
  LIST_PAGE_DEFAULT,
  LIST_PAGE_MAX,
  LONG_POLL_S_MAX,
} from "#contract/limits.ts";
import type { Dataset } from "#datasets/dataset.ts";
import { DatasetEnvelope, datasetEnvelope, RowEnvelope, rowEnvelope } from "#datasets/envelope.ts";
import { datasetContext, findDataset, listDatasets, listRows } from "#datasets/find.ts";
import { createRowVideoLinks } from "#datasets/row-video-links.ts";

import { knownParameters } from "../input/known-fields.ts";
import { answerEndOf } from "../plugins/answer-end.ts";
import { identityOf } from "../plugins/keys.ts";
import type { RouteParts } from "../route-parts.ts";
import { addDatasetCreateRoute } from "./dataset-create.ts";

const oneOf = <const T extends string>(values: readonly T[]) =>
  Type.Unsafe<T>(Type.Union(values.map((value) => Type.Literal(value)))); // a union of a list's members has no type of its own

const listOf = <Item extends TSchema, Next extends TSchema>(item: Item, next: Next) =>
  Type.Object({
    object: Type.Literal("list"),
    data: Type.Array(item),
    has_more: Type.Boolean(),
    next: Type.Union([next, Type.Null()], { description: "`after` of the next page." }),
  });

/** While it is in one of these, something changes by itself. */
const MOVING: ReadonlySet<Dataset["state"]> = new Set(["receiving", "running", "cancelling"]);
/** How often somebody who waits has it looked at. */
const LOOK_EVERY_MS = 1_000;
/** When to look again at one that moves. */
const RETRY_AFTER_S = 2;

const ListQuery = Type.Object({
  limit: Type.Integer({ minimum: 1, maximum: LIST_PAGE_MAX, default: LIST_PAGE_DEFAULT }),
  after: Type.Optional(Type.String({ description: "`next` of the page before." })),
  state: Type.Optional(oneOf(DATASET_STATES)),
});

const RowsQuery = Type.Object({
  limit: Type.Integer({ minimum: 1, maximum: DATASET_ROWS_PAGE_MAX, default: DATASET_ROWS_PAGE_DEFAULT }),
  after: Type.Integer({
    minimum: 0,
    maximum: 2 ** 31 - 1,
    default: 0,
    description: "`next` of the page before.",
  }),
  state: Type.Optional(oneOf(ROW_STATES)),
});

export function addDatasetRoutes(bare: FastifyInstance, parts: RouteParts): void {
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();
  const { db, keyed, clock, draining, publicUrl, retentionMs, idleMs } = parts;
  const links = createRowVideoLinks(parts.videoSecret);

  addDatasetCreateRoute(bare, parts);

  async function ownDataset(request: FastifyRequest, text: string): Promise<Dataset> {
    const id = parseDatasetId(text);
    const dataset = id && (await findDataset(db, id, identityOf(request).customer_id));
    if (dataset) return dataset;
    throw new ApiError("dataset_not_found", "no such dataset of yours; expected dataset_ and 32 hexadecimal digits");
  }

  async function envelope(request: FastifyRequest, dataset: Dataset): Promise<DatasetEnvelope> {
    const around = { retentionMs, idleMs, publicUrl: publicUrl(request), nowMs: clock.now() };
    return datasetEnvelope(dataset, await datasetContext(db, dataset, around));
  }

  app.get(
    "/v1/datasets/:id",
    {
      onRequest: [...keyed],
      schema: {
        summary: "A dataset of yours; waits until it rests if you like",
        description: "It rests when it is ready, paused, or at its end. Before, with `Retry-After`.",
        tags: ["datasets"],
        params: Type.Object({ id: Type.String() }),
        querystring: Type.Object({ wait: Type.Integer({ minimum: 0, maximum: LONG_POLL_S_MAX, default: 0 }) }),
        response: { 200: DatasetEnvelope },
      },
    },
    async (request, reply) => {
      const until = clock.now() + request.query.wait * 1000;
      const giveUp = AbortSignal.any([answerEndOf(request).gone, draining]);
      let dataset = await ownDataset(request, request.params.id);
      while (MOVING.has(dataset.state) && clock.now() < until && !giveUp.aborted) {
        const pause = Math.min(LOOK_EVERY_MS, until - clock.now());
        await delay(pause, undefined, { signal: giveUp }).catch(() => undefined); // ended: looked at once more
        dataset = await ownDataset(request, dataset.id);
      }
      if (MOVING.has(dataset.state)) reply.header("Retry-After", RETRY_AFTER_S);
      return envelope(request, dataset);
    },
  );

  app.get(
    "/v1/datasets",
    {
      onRequest: [...keyed],
      preValidation: knownParameters(ListQuery),
      schema: {
        summary: "Your datasets, newest first",
        tags: ["datasets"],
        querystring: ListQuery,
        response: { 200: listOf(DatasetEnvelope, Type.String()) },
      },
    },
    async (request) => {
      const { limit, state = null } = request.query;
      // One of somebody else's is none: a page that begins nowhere would look like the end.
      const after = request.query.after === undefined ? null : await ownDataset(request, request.query.after);
      const { customer_id } = identityOf(request);
      const { data, has_more } = await listDatasets(db, customer_id, { limit, state, after: after?.id ?? null });
      const envelopes = [];
      for (const dataset of data) envelopes.push(await envelope(request, dataset));
      return { object: "list" as const, data: envelopes, has_more, next: has_more ? (data.at(-1)?.id ?? null) : null };
    },
  );

  app.get(
    "/v1/datasets/:id/rows",
    {
      onRequest: [...keyed],
      preValidation: knownParameters(RowsQuery),
      schema: {
        summary: "The rows of a dataset, in their order",
        tags: ["datasets"],
        params: Type.Object({ id: Type.String() }),
        querystring: RowsQuery,
        response: { 200: listOf(RowEnvelope, Type.Integer()) },
      },
    },
    async (request) => {
      const dataset = await ownDataset(request, request.params.id);
      const { limit, after, state = null } = request.query;
      const { data, has_more } = await listRows(db, dataset.id, { limit, after, state });
      const around = {
        publicUrl: publicUrl(request),
        nowMs: clock.now(),
        filesDeleted: dataset.files_deleted_at !== null,
      };
      const rows = data.map((row) => rowEnvelope(row, links.of(row, around)));
      return { object: "list" as const, data: rows, has_more, next: has_more ? (data.at(-1)?.n ?? null) : null };
    },
  );
}
