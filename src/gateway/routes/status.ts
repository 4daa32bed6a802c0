/** `GET /v1/status`, for people and dashboards; `/healthz` and `/readyz`, for what keeps processes alive. */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance } from "fastify";
import { Type } from "typebox";

import { PoolState } from "#contract/pool.ts";
import { within } from "#platform/bounded.ts";

import type { RouteParts } from "../route-parts.ts";
import type { ModelStatus } from "../status.ts";

const Percentiles = Type.Object(
  {
    p50: Type.Union([Type.Number(), Type.Null()]),
    p99: Type.Union([Type.Number(), Type.Null()]),
    count: Type.Integer(),
  },
  {
    description:
      "Of what somebody waited for (not async, no datasets), over the last 24 hours, the latest 10,000; null when there was nothing.",
  },
);

const ModelStatusBody = Type.Object({
  slug: Type.String(),
  pool: PoolState,
  queue_depth: Type.Integer({ description: "Accepted, not yet taken by a worker." }),
  engine_wall_ms: Percentiles,
  request_ms: Percentiles,
});

const statusBody = ({ slug, pool, queue_depth, latency }: ModelStatus) => ({ slug, pool, queue_depth, ...latency });

export function addStatusRoute(bare: FastifyInstance, { status, baseModel, clock }: RouteParts): void {
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();

  app.get(
    "/v1/status",
    {
      schema: {
        summary: "How the server is doing",
        tags: ["models"],
        security: [],
        response: {
          200: Type.Object({
            status: Type.Literal("ok"),
            model: Type.String({ description: "The model of this base URL." }),
            uptime_s: Type.Number(),
            pool: PoolState,
            queue_depth: Type.Integer(),
            engine_wall_ms: Percentiles,
            request_ms: Percentiles,
            models: Type.Array(ModelStatusBody),
          }),
        },
      },
    },
    async (request) => {
      const models = (await status.models()).map(statusBody);
      const model = baseModel(request).slug;
      const active = models.find(({ slug }) => slug === model);
      if (!active) throw new Error(`no status of ${model}`);
      const { slug: _slug, ...figures } = active;
      const uptime_s = Math.round((clock.now() - status.startedMs) / 100) / 10;
      return { status: "ok" as const, model, uptime_s, ...figures, models };
    },
  );
}

export function addLivenessRoute(app: FastifyInstance): void {
  app.get(
    "/healthz",
    {
      schema: {
        summary: "Alive",
        tags: ["operation"],
        security: [],
        response: { 200: Type.Object({ status: Type.Literal("ok") }) },
      },
    },
    async () => ({ status: "ok" }),
  );
}

/** A dependency that answers slower than this is not ready to serve. */
const READY_TIMEOUT_MS = 2_000;

export function addReadinessRoute(bare: FastifyInstance, { db, models, jobsOf, log }: RouteParts): void {
  const app = bare.withTypeProvider<TypeBoxTypeProvider>();
  const Check = Type.Union([Type.Literal("ok"), Type.Literal("unreachable")]);
  const Ready = Type.Object({
    status: Type.Union([Type.Literal("ready"), Type.Literal("not ready")]),
    database: Check,
    queue: Check,
  });

  async function check(what: string, work: () => Promise<unknown>): Promise<"ok" | "unreachable"> {
    try {
      await within(READY_TIMEOUT_MS, what, work());
      return "ok";
    } catch (error) {
      log.warn({ err: error }, `not ready: ${what}`);
      return "unreachable";
    }
  }

  app.get(
    "/readyz",
    {
      schema: {
        summary: "Ready to take rollouts: database and queue answer",
        tags: ["operation"],
        security: [],
        response: { 200: Ready, 503: Ready },
      },
    },
    async (_request, reply) => {
      const [database, queue] = await Promise.all([
        check("the database", () => db.query("SELECT 1")),
        check("the queue", () => Promise.all(models.all.map(({ slug }) => jobsOf(slug).counts()))),
      ]);
      const ready = database === "ok" && queue === "ok";
      return reply.code(ready ? 200 : 503).send({ status: ready ? "ready" : "not ready", database, queue });
    },
  );
}
