/** The OpenAPI document, made from the routes' schemas, at /openapi.json, and a page to browse it at /docs. */
import swagger from "@fastify/swagger";
import swaggerUi from "@fastify/swagger-ui";
import type { FastifyInstance, FastifySchema } from "fastify";
import type { TSchema } from "typebox";

import { ErrorBody } from "./errors.ts";

declare module "fastify" {
  interface FastifyContextConfig {
    /** The multipart form a route reads; documentation, its handler checks it. */
    form?: TSchema;
    /** Content types of answers that are not JSON, by status. */
    answers?: Readonly<Record<number, string>>;
  }
}

/** Statuses that any route may answer with. */
const ERROR_STATUSES = ["4XX", "5XX"] as const;

/** Before the routes, so that it sees them. */
export async function addOpenApi(app: FastifyInstance): Promise<void> {
  await app.register(swagger, {
    openapi: {
      openapi: "3.1.0",
      info: {
        title: "Dream Engine",
        version: "1",
        description:
          "Action-conditioned video world models behind a queue, prepaid and exact to the mil ($0.0001). " +
          "Every model has a base URL of its own: the same routes below /m/{slug}.",
      },
      components: { securitySchemes: { key: { type: "http", scheme: "bearer", description: "dre_…" } } },
      security: [{ key: [] }],
    },
    transform: ({ schema, url, route }) => {
      // Below /m/ the routes of the bare base URL repeat.
      if (url.startsWith("/m/")) return { schema: { ...schema, hide: true }, url };
      return { schema: documented(schema ?? {}, route.config), url };
    },
  });
  await app.register(swaggerUi, {
    routePrefix: "/docs",
    staticCSP: true,
    uiConfig: { deepLinking: true },
    // The bar at the top holds nothing but the logo of Swagger UI's packager.
    theme: {
      title: "Dream Engine API",
      css: [{ filename: "theme.css", content: ".swagger-ui .topbar { display: none; }" }],
    },
  });
  app.get("/openapi.json", { schema: { hide: true } }, async () => app.swagger());
}

interface Documented {
  readonly form?: TSchema;
  readonly answers?: Readonly<Record<number, string>>;
}

function documented(schema: FastifySchema, config: Documented | undefined): FastifySchema {
  const response: Record<string, unknown> = { ...(schema.response as Record<string, unknown> | undefined) };
  for (const [status, contentType] of Object.entries(config?.answers ?? {})) {
    const binary = { type: "string", format: "binary" };
    response[status] = { description: "The video data", content: { [contentType]: { schema: binary } } };
  }
  for (const status of ERROR_STATUSES) response[status] = ErrorBody;
  return {
    ...schema,
    ...(config?.form ? { body: config.form, consumes: ["multipart/form-data"] } : {}),
    response,
  };
}
