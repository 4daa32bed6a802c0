/** The end of an answer: whole, or cut off because the caller went away. Fastify's onResponse knows the first alone. */
import type { FastifyInstance, FastifyRequest } from "fastify";

export interface AnswerEnd {
  /** Resolves when the connection is done with this request: true when our answer went out whole. */
  readonly whole: Promise<boolean>;
  /** Aborts when the caller's connection closes before our answer is whole. */
  readonly gone: AbortSignal;
}

declare module "fastify" {
  interface FastifyRequest {
    /** Set by the first hook. */
    answerEnd: AnswerEnd | null;
  }
}

/** One pair of listeners a request, whoever is interested; before every other hook. */
export function addAnswerEnd(app: FastifyInstance): void {
  app.decorateRequest("answerEnd", null);
  app.addHook("onRequest", async (request, reply) => {
    const gone = new AbortController();
    const whole = new Promise<boolean>((resolve) => {
      let finished = false;
      // "finish": the last byte was handed to the system. A connection that broke before never comes here.
      reply.raw.once("finish", () => {
        finished = true;
      });
      // "close" comes after every end, on keep-alive connections too.
      reply.raw.once("close", () => {
        if (!finished) gone.abort();
        resolve(finished);
      });
    });
    request.answerEnd = { whole, gone: gone.signal };
  });
}

export function answerEndOf(request: FastifyRequest): AnswerEnd {
  if (!request.answerEnd) throw new Error("addAnswerEnd has to come before every other hook");
  return request.answerEnd;
}
