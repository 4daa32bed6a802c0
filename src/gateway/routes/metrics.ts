/** `/metrics` for Prometheus: with the operator's token, or from this very machine where none is set. */
import { createHash, timingSafeEqual } from "node:crypto";

import type { FastifyInstance, FastifyRequest } from "fastify";

import { ApiError } from "#contract/errors.ts";

import type { RouteParts } from "../route-parts.ts";

export function addMetricsRoute(app: FastifyInstance, { config, registry }: RouteParts): void {
  app.get("/metrics", { schema: { hide: true } }, async (request, reply) => {
    if (config.OPERATOR_TOKEN === undefined) checkLoopback(request);
    else checkToken(request, config.OPERATOR_TOKEN);
    return reply.type(registry.contentType).send(await registry.metrics());
  });
}

const hash = (text: string): Buffer => createHash("sha256").update(text).digest();

function checkToken(request: FastifyRequest, token: string): void {
  // Hashes, so that both sides have one length and the comparison tells nothing by its time.
  if (!timingSafeEqual(hash(request.headers.authorization ?? ""), hash(`Bearer ${token}`))) {
    throw new ApiError("missing_key", "expected the operator's token: Authorization: Bearer <OPERATOR_TOKEN>");
  }
}

const PROXY_HEADERS = ["forwarded", "x-forwarded-for", "x-real-ip", "via"];

/** A proxy on this machine also connects from loopback, but says for whom. */
function checkLoopback(request: FastifyRequest): void {
  const local = /^(127\.|::1$|::ffff:127\.)/.test(request.ip);
  if (!local || PROXY_HEADERS.some((name) => request.headers[name] !== undefined)) {
    throw new ApiError(
      "forbidden",
      "metrics are shown to this machine alone; set OPERATOR_TOKEN to read them from others",
    );
  }
}
