/** `GET /v1/rollouts`: a customer's rollouts, newest first, by cursor. */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance } from "fastify";
import { type Static, Type } from "typebox";

import { ApiError } from "#contract/errors.ts";
import { type CustomerId, parseDatasetId, parseRolloutId, type RolloutId } from "#contract/ids.ts";
import { LIST_PAGE_DEFAULT, LIST_PAGE_MAX } from "#contract/limits.ts";
import type { RolloutStatus } from "#contract/rollout.ts";
import { RolloutEnvelope } from "#rollouts/envelope.ts";
import { findRollout, isOwnDataset } from "#rollouts/find.ts";
import { listRollouts, type RolloutFilter } from "#rollouts/list.ts";

import { knownParameters } from "../input/known-fields.ts";
import { identityOf } from "../plugins/keys.ts";
import type { RouteParts } from "../route-parts.ts";

/** What is stored of a rollout that shows so. Whether one that is dispatched shows as running is known to the queue. */
const STORED = {
  queued: ["queued", "dispatched"],
  running: ["dispatched"],
  succeeded: ["succeeded"],
  failed: ["failed"],
  cancelled: ["cancelled"],
  expired: ["expired"],
} as const satisfies Record<RolloutEnvelope["status"], readonly RolloutStatus[]>;

/** As text: of what is no number the framework would make one first. */
const EpochSeconds = (what: string) =>
  Type.Optional(Type.String({ pattern: "^[0-9]{1,10}(\\.[0-9]{1,6})?$", description: `Epoch seconds: ${what}` }));

const Query = Type.Object({
  limit: Type.Integer({ minimum: 1, maximum: LIST_PAGE_MAX, default: LIST_PAGE_DEFAULT }),
  after: Type.Optional(Type.String({ description: "`next` of the page before." })),
  status: Type.Optional(RolloutEnvelope.properties.status),
  model: Type.Optional(Type.String({ pattern: "^[a-z0-9-]{1,63}$", description: "A model's slug." })),
  dataset: Type.Optional(Type.String({ description: "The rollouts of this dataset, which are in no other list." })),
  created_after: EpochSeconds("accepted then or later."),
  created_before: EpochSeconds("accepted before then."),
});

const RolloutList = Type.Object(
  {
    object: Type.Literal("list"),
    data: Type.Array(RolloutEnvelope),
    has_more: Type.Boolean({ description: "Whether to ask on; a page may be short, or empty, and not be the last." }),
    next: Type.Union([Type.String(), Type.Null()], { description: "`after` of the next page." }),
  },
  { description: "A page of rollouts, newest first" },
);

export function addRolloutListRoute(bare: FastifyInstance, { db, keyed, rolloutViews }: RouteParts): void {
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();

  app.get(
    "/v1/rollouts",
    {
      onRequest: [...keyed],
      preValidation: knownParameters(Query),
      schema: {
        summary: "Your rollouts, newest first",
        description:
          "Rollouts of datasets are listed with `dataset` alone. A page looks at a bounded number of rollouts, so one " +
          "whose filter lets little through may be short: go on as long as `has_more`.",
        tags: ["rollouts"],
        querystring: Query,
        response: { 200: RolloutList },
      },
    },
    async (request) => {
      const { customer_id } = identityOf(request);
      const { limit, status } = request.query;
      const filter = await filterOf(customer_id, request.query);
      const page = await listRollouts(db, filter, { after: await cursorOf(customer_id, request.query.after), limit });
      const shown = await rolloutViews.ofPage(page.rollouts, request);
      return {
        object: "list" as const,
        data: status === undefined ? shown : shown.filter((envelope) => envelope.status === status),
        has_more: page.next !== null,
        next: page.next,
      };
    },
  );

  async function filterOf(customer_id: CustomerId, query: Static<typeof Query>): Promise<RolloutFilter> {
    const { dataset, status, model, created_after, created_before } = query;
    const dataset_id = dataset === undefined ? null : parseDatasetId(dataset);
    if (dataset !== undefined && !(dataset_id && (await isOwnDataset(db, dataset_id, customer_id)))) {
      throw new ApiError(
        "dataset_not_found",
        "dataset: no such dataset of yours; expected dataset_ and 32 hexadecimal digits",
      );
    }
    return {
      customer_id,
      dataset_id,
      statuses: status === undefined ? null : STORED[status],
      model: model ?? null,
      created_after: created_after === undefined ? null : new Date(Number(created_after) * 1000),
      created_before: created_before === undefined ? null : new Date(Number(created_before) * 1000),
    };
  }

  async function cursorOf(customer_id: CustomerId, after: string | undefined): Promise<RolloutId | null> {
    if (after === undefined) return null;
    const id = parseRolloutId(after);
    if (id && (await findRollout(db, id, customer_id))) return id;
    throw new ApiError("invalid_input", "after: expected the id of a rollout of yours, as `next` of a page gives it");
  }
}
