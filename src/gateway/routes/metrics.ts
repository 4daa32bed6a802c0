/** `/metrics` for Prometheus: with the operator's token, or from this very machine where none is set. */
import type { FastifyInstance } from "fastify";

import { checkOperator } from "../plugins/operator.ts";
import type { RouteParts } from "../route-parts.ts";

export function addMetricsRoute(app: FastifyInstance, { config, registry }: RouteParts): void {
  app.get("/metrics", { schema: { hide: true } }, async (request, reply) => {
    checkOperator(request, config);
    return reply.type(registry.contentType).send(await registry.metrics());
  });
}
