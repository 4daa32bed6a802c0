/** What a frame costs the customer whose key it is: now, and as far as it has been announced. */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance } from "fastify";
import { Type } from "typebox";

import { noticeFor } from "#billing/prices.ts";
import { mils, usdNumber } from "#contract/mils.ts";

import { identityOf } from "../plugins/keys.ts";
import type { RouteParts } from "../route-parts.ts";

const Price = {
  mils_per_frame: Type.Integer({ description: "1 mil = $0.0001." }),
  usd_per_frame: Type.Number(),
};

const Prices = Type.Object({
  customer_id: Type.String(),
  ...Price,
  list: Type.Object(Price, { description: "What customers without a price of their own pay." }),
  changes: Type.Array(
    Type.Object({
      ...Price,
      effective_from: Type.String({ format: "date-time" }),
      effective_from_ts: Type.Number({ description: "Epoch seconds." }),
    }),
    { description: "What you are going to pay. A rise stands here for 30 days before it takes effect." },
  ),
});

export function addPriceRoute(bare: FastifyInstance, { db, clock, keyed }: RouteParts): void {
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();
  app.get(
    "/v1/billing/prices",
    {
      onRequest: [...keyed],
      schema: { summary: "Your price, and what is going to change", tags: ["billing"], response: { 200: Prices } },
    },
    async (request) => {
      const { customer_id } = identityOf(request);
      const { mils_per_frame, list_mils_per_frame, changes } = await noticeFor(db, customer_id, clock);
      return {
        customer_id,
        ...priced(mils_per_frame),
        list: priced(list_mils_per_frame),
        changes: changes.map(({ mils_per_frame, effective_from }) => ({
          ...priced(mils_per_frame),
          effective_from: effective_from.toISOString(),
          effective_from_ts: effective_from.getTime() / 1000,
        })),
      };
    },
  );
}

const priced = (mils_per_frame: number) => ({ mils_per_frame, usd_per_frame: usdNumber(mils(mils_per_frame)) });
