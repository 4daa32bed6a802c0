/** Requests by route, method and status. Labels come from our own routes and from fixed lists, never from callers. */
import type { FastifyInstance } from "fastify";
import { Counter, Gauge, Histogram, type Registry } from "prom-client";

import { answerEndOf } from "./answer-end.ts";

const METHODS = new Set(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]);
/** From a catalogue read to a call held through a cold start. */
const DURATION_BUCKETS_S = [0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300];

export function addHttpMetrics(app: FastifyInstance, registry: Registry): void {
  const duration = new Histogram({
    name: "dream_http_request_duration_seconds",
    help: "From the request's first byte to the answer's last.",
    labelNames: ["method", "route", "status"] as const,
    buckets: DURATION_BUCKETS_S,
    registers: [registry],
  });
  const inFlight = new Gauge({
    name: "dream_http_requests_in_flight",
    help: "Requests being answered now.",
    registers: [registry],
  });
  const gone = new Counter({
    name: "dream_http_callers_gone_total",
    help: "Connections that closed before the answer was whole.",
    labelNames: ["route"] as const,
    registers: [registry],
  });

  app.addHook("onRequest", async (request, reply) => {
    inFlight.inc();
    const started = performance.now();
    void answerEndOf(request).whole.then((whole) => {
      inFlight.dec();
      const route = request.routeOptions.url ?? "unmatched";
      if (!whole) gone.inc({ route });
      duration.observe(
        {
          method: METHODS.has(request.method) ? request.method : "other",
          route,
          status: whole ? String(reply.statusCode) : "gone",
        },
        (performance.now() - started) / 1000,
      );
    });
  });
}
