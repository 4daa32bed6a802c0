/**
 * Every error leaves as `{detail, error: {code, message, request_id}}`. The published client reads `detail` alone.
 * What we did not expect is logged whole and answered without a word of its insides.
 */
import { STATUS_CODES } from "node:http";
import type { Socket } from "node:net";

import type {
  FastifyError,
  FastifyInstance,
  FastifyReply,
  FastifyRequest,
  FastifySchemaValidationError,
} from "fastify";
import { Counter, type Registry } from "prom-client";
import { Type } from "typebox";

import { ApiError } from "#contract/errors.ts";
import { newRequestId, type RandomBytes } from "#contract/ids.ts";
import { isAway } from "#platform/database.ts";
import { type Log, withoutSecrets } from "#platform/log.ts";

import { bodyTooLarge } from "../input/multipart.ts";
import { REQUEST_ID_HEADER, setRequestId } from "./request-id.ts";

export const ErrorBody = Type.Object(
  {
    detail: Type.Union([Type.String(), Type.Record(Type.String(), Type.Unknown())], {
      description: "What was wrong and what was expected; an object with the amounts on 402.",
    }),
    error: Type.Object({
      code: Type.String({ description: "Stable, for programs." }),
      message: Type.String(),
      request_id: Type.String(),
    }),
  },
  { description: "Error" },
);

function errorBody(error: ApiError, requestId: string): object {
  // A message may repeat what came in, and a key in the wrong field ends up in tickets and logs of others.
  const message = withoutSecrets(error.message);
  return {
    detail: error.detail ?? message,
    error: { code: error.code, message, request_id: requestId },
  };
}

export function addErrors(app: FastifyInstance, registry: Registry): void {
  const methods = createMethodTable(app);
  const errors = new Counter({
    name: "dream_http_errors_total",
    help: "Errors that callers were told, by their stable code.",
    labelNames: ["code"] as const,
    registers: [registry],
  });

  app.setErrorHandler((error, request, reply) => {
    errors.inc({ code: toApiError(error).code });
    return answerError(error, request, reply);
  });

  app.setNotFoundHandler((request, reply) => {
    const path = request.url.split("?", 1)[0] ?? "";
    const allowed = methods.of(path);
    if (allowed.length === 0) {
      return answerError(new ApiError("not_found", `no route ${request.method} ${path}; see /docs`), request, reply);
    }
    const allow = allowed.join(", ");
    return answerError(
      new ApiError("method_not_allowed", `${path}: expected ${allow}, got ${request.method}`, {
        headers: { Allow: allow },
      }),
      request,
      reply,
    );
  });
}

function answerError(error: unknown, request: FastifyRequest, reply: FastifyReply): FastifyReply {
  const known = toApiError(error, request);
  if (known.status >= 500) {
    request.log.error({ err: error, request_id: request.id, code: known.code }, "request failed");
  }
  return reply.code(known.status).headers(known.headers).type("application/json").send(errorBody(known, request.id));
}

/** For errors that Fastify meets before any hook ran (a URL that cannot be decoded). */
export function answerFrameworkError(error: FastifyError, request: FastifyRequest, reply: FastifyReply): void {
  setRequestId(request, reply);
  answerError(new ApiError("invalid_request", "the URL is not valid", { cause: error }), request, reply);
}

/** For bytes that are no HTTP request at all; there is neither request nor reply then. */
export function createClientErrorAnswer(random: RandomBytes, log: Log) {
  return (cause: Error & { code?: string }, socket: Socket): void => {
    if (cause.code === "ECONNRESET" || !socket.writable) {
      socket.destroy();
      return;
    }
    const [status, message] =
      cause.code === "HPE_HEADER_OVERFLOW"
        ? [431, "expected at most 16 kB of headers"]
        : cause.code === "ERR_HTTP_REQUEST_TIMEOUT"
          ? [408, "the request did not arrive in time"]
          : [400, "expected an HTTP/1.1 request"];
    const requestId = newRequestId(random);
    log.info({ err: cause, request_id: requestId, status }, "not an HTTP request");
    const body = JSON.stringify(errorBody(new ApiError("invalid_request", message), requestId));
    socket.end(
      `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n${REQUEST_ID_HEADER}: ${requestId}\r\n` +
        `Content-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`,
    );
  };
}

/** As long as a database that starts again, or a lock that is held, keeps callers in most cases. */
const LEDGER_RETRY_AFTER_S = 2;

function toApiError(error: unknown, request?: FastifyRequest): ApiError {
  if (error instanceof ApiError) return error;
  if (isFastifyError(error)) {
    if (error.validation) return invalidField(error);
    const { statusCode = 500 } = error;
    if (statusCode === 413) return bodyTooLarge(request?.routeOptions.bodyLimit);
    if (statusCode === 415) {
      const got = request?.headers["content-type"]?.slice(0, 100) ?? "none";
      // The routes that take a form say so themselves, before this (paid-form.ts).
      return new ApiError("unsupported_media_type", `expected Content-Type application/json, got ${got}`, {
        cause: error,
      });
    }
    if (statusCode >= 400 && statusCode < 500) return new ApiError("invalid_request", error.message, { cause: error });
  }
  if (isAway(error)) {
    // Only routes that read a form charge for anything.
    const paid = request?.routeOptions.config.form !== undefined;
    return new ApiError(
      "ledger_unavailable",
      paid
        ? "the ledger cannot be reached; what was charged for this request, if anything, is refunded"
        : "the database cannot be reached now; try again",
      { headers: { "Retry-After": String(LEDGER_RETRY_AFTER_S) }, cause: error },
    );
  }
  return new ApiError("internal", "something went wrong on our side; it is logged under the request id", {
    cause: error,
  });
}

function isFastifyError(error: unknown): error is FastifyError {
  return error instanceof Error && "statusCode" in error && "code" in error;
}

/** From Ajv's complaints: the field, what it takes, what came. */
function invalidField(error: FastifyError): ApiError {
  const problem = error.validation?.[0];
  const where = error.validationContext ?? "request";
  const field = problem ? `${where}${problem.instancePath.replaceAll("/", ".")}` : where;
  const missing = problem && missingField(problem);
  if (missing) return new ApiError("invalid_input", `${field}.${missing}, got none`, { cause: error });
  const got = problem && "data" in problem ? `, got ${JSON.stringify(problem.data)?.slice(0, 60)}` : "";
  const what = constantsOf(error) ?? problem?.message ?? error.message;
  return new ApiError("invalid_input", `${field}: ${what}${got}`, { cause: error });
}

interface WithExamples {
  readonly properties?: Readonly<Record<string, { readonly examples?: readonly unknown[] }>>;
}

/** The name of a field that has to be there, and its example where the schema gives one. */
function missingField({ keyword, params, ...verbose }: FastifySchemaValidationError): string | null {
  const name = params["missingProperty"];
  if (keyword !== "required" || typeof name !== "string") return null;
  const schema = "parentSchema" in verbose ? (verbose.parentSchema as WithExamples) : {}; // the route's own (Ajv: verbose)
  const example = schema.properties?.[name]?.examples?.[0];
  return `${name}: expected${example === undefined ? "" : ` one such as ${JSON.stringify(example)}`}`;
}

/** A union of constants is complained about one by one: what the first field in question takes, all together. */
function constantsOf({ validation = [] }: FastifyError): string | null {
  const allowed = validation.flatMap(({ keyword, instancePath, params }) =>
    keyword === "const" && instancePath === validation[0]?.instancePath ? [JSON.stringify(params["allowedValue"])] : [],
  );
  return allowed.length === 0 ? null : `expected ${allowed.join(" or ")}`;
}

/** Which methods a path takes, so that a wrong one gets a 405 that says so. */
function createMethodTable(app: FastifyInstance): { of(path: string): string[] } {
  const routes: { method: string; pattern: RegExp }[] = [];
  app.addHook("onRoute", ({ method, url }) => {
    const pattern = new RegExp(`^${url.replaceAll(/:[^/]+/g, "[^/]+").replaceAll("*", ".*")}$`);
    for (const one of [method].flat()) routes.push({ method: one, pattern });
  });
  return {
    of: (path) => [...new Set(routes.filter(({ pattern }) => pattern.test(path)).map(({ method }) => method))].sort(),
  };
}
