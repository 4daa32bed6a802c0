/** One line a request: no body, no key, and no query, because a video link's signature is in it. */
import type { FastifyInstance } from "fastify";

import type { Log } from "#platform/log.ts";

import { answerEndOf } from "./answer-end.ts";

/** How much of a caller's own request id is kept. */
const CALLER_REQUEST_ID_CHARS = 100;

export function addRequestLog(app: FastifyInstance, log: Log): void {
  app.addHook("onRequest", async (request, reply) => {
    const started = performance.now();
    void answerEndOf(request).whole.then((whole) => {
      const callerId = request.headers["x-request-id"];
      log.info(
        {
          request_id: request.id,
          caller_request_id: typeof callerId === "string" ? callerId.slice(0, CALLER_REQUEST_ID_CHARS) : undefined,
          method: request.method,
          path: request.url.split("?", 1)[0],
          status: whole ? reply.statusCode : 499,
          customer_id: request.identity?.customer_id,
          ms: Math.round(performance.now() - started),
        },
        "request",
      );
    });
  });
}
