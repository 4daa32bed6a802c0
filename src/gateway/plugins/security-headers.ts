/** Headers that keep a browser from doing with our answers what they are not meant for. */
import type { FastifyInstance } from "fastify";

export function addSecurityHeaders(app: FastifyInstance): void {
  app.addHook("onRequest", async (_request, reply) => {
    reply.headers({
      "X-Content-Type-Options": "nosniff",
      "X-Frame-Options": "DENY",
      "Referrer-Policy": "no-referrer",
      // Answers differ by key and hold balances; videos set their own.
      "Cache-Control": "no-store",
    });
  });
}
