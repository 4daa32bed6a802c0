/** What a frame costs and leaves, by pool and month; `dream-engine economics` prints the same. */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance } from "fastify";
import { Type } from "typebox";

import { economicsJson } from "#economics/json.ts";
import { readMonth } from "#economics/month.ts";
import { monthOf } from "#economics/month-range.ts";

import type { RouteParts } from "../route-parts.ts";

export function addEconomicsRoute(bare: FastifyInstance, { db, clock, config }: RouteParts): void {
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();
  app.get(
    "/v1/admin/economics",
    { schema: { hide: true, querystring: Type.Object({ month: Type.Optional(Type.String()) }) } },
    async (request) => {
      const now = new Date(clock.now());
      const month = request.query.month ?? monthOf(now);
      return economicsJson(await readMonth(db, { month, gpuUsdPerHour: config.GPU_USD_PER_HOUR }, now));
    },
  );
}
