/** Every answer carries our request id; a caller's own `X-Request-Id` is logged and never taken for ours. */
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";

import type { RequestId } from "#contract/ids.ts";

export const REQUEST_ID_HEADER = "X-DreamEngine-Request-Id";

/** Ids come from `genReqId`, which mints them (app.ts). */
export const requestIdOf = (request: FastifyRequest): RequestId => request.id as RequestId;

export function addRequestId(app: FastifyInstance): void {
  app.addHook("onRequest", async (request, reply) => {
    setRequestId(request, reply);
  });
}

export function setRequestId(request: FastifyRequest, reply: FastifyReply): void {
  reply.header(REQUEST_ID_HEADER, request.id);
}
