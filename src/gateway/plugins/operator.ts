/**
 * Who runs this server: whoever has OPERATOR_TOKEN, or where none is set, whoever sits at this very machine. In front of
 * `/metrics` and of every route of routes/admin.ts.
 */
import { isIP } from "node:net";

import type { FastifyRequest, onRequestAsyncHookHandler } from "fastify";

import { ApiError } from "#contract/errors.ts";
import { isSameSecret } from "#platform/same-secret.ts";

import type { GatewayOptions } from "../gateway-parts.ts";
import { addressBucket, tooManyRequests } from "../rate-limiter.ts";

type OperatorConfig = Pick<GatewayOptions["config"], "OPERATOR_TOKEN" | "PUBLIC_URL" | "TRUSTED_PROXIES">;

/** Throws ApiError(missing_key), or where there is no token to ask for, ApiError(forbidden). */
export function checkOperator(request: FastifyRequest, config: OperatorConfig): void {
  if (config.OPERATOR_TOKEN === undefined) checkLoopback(request, config);
  else checkToken(request, config.OPERATOR_TOKEN);
}

/** Reads of the operator's pages, from everybody together: a dashboard that asks each second in twenty windows. */
const READS = { per_second: 20, burst: 100 };
/** Wrong tokens of one address, as of keys (keys.ts). The right one is never refused by it. */
const FAILURES = { per_second: 2, burst: 30 };

/** The first hook of the operator's routes. */
export function createOperatorCheck({
  config,
  rateLimiter,
}: Pick<GatewayOptions, "rateLimiter"> & { readonly config: OperatorConfig }): onRequestAsyncHookHandler {
  return async (request) => {
    try {
      checkOperator(request, config);
    } catch (error) {
      await refuseFailed(rateLimiter, request, error);
    }
    const decision = await rateLimiter.take("operator", READS);
    if (!decision.allowed) {
      const limit = { name: "operator", policy: READS };
      throw tooManyRequests(
        `the operator's pages take ${READS.per_second} requests a second with a burst of ${READS.burst}`,
        limit,
        decision,
      );
    }
  };
}

/** Throws `error`, or where that address failed too often, ApiError(rate_limited). */
export async function refuseFailed(
  rateLimiter: GatewayOptions["rateLimiter"],
  request: FastifyRequest,
  error: unknown,
): Promise<never> {
  const failures = await rateLimiter.take(addressBucket("failed", request.ip), FAILURES);
  if (failures.allowed) throw error;
  const limit = { name: "failed authentications", policy: FAILURES };
  throw tooManyRequests("failed authentications from this address", limit, failures, error);
}

function checkToken(request: FastifyRequest, token: string): void {
  const [, given = ""] = /^Bearer +(.+)$/i.exec(request.headers.authorization ?? "") ?? [];
  if (isSameSecret(given, token)) return;
  throw new ApiError("missing_key", "expected the operator's token: Authorization: Bearer <OPERATOR_TOKEN>", {
    headers: { "WWW-Authenticate": "Bearer" },
  });
}

const PROXY_HEADERS = ["forwarded", "x-forwarded-for", "x-real-ip", "via"];

/**
 * A proxy on this machine also connects from loopback, and by our address: most say for whom, and of one that does not (nginx
 * as it comes) the settings tell. A page of somebody else's that had its own name lead here connects from loopback, too, but
 * by that name.
 */
function checkLoopback(request: FastifyRequest, config: OperatorConfig): void {
  const proxied = PROXY_HEADERS.some((name) => request.headers[name] !== undefined) || isServedToOthers(config);
  if (LOOPBACK.test(request.ip) && isOurName(request.hostname) && !proxied) return;
  throw new ApiError(
    "forbidden",
    "this is shown to this machine alone, asked as localhost or by its address, and to nobody where PUBLIC_URL or TRUSTED_PROXIES " +
      "say that others come by a proxy; set OPERATOR_TOKEN to read it from anywhere",
  );
}

const LOOPBACK = /^(127\.|::1$|::ffff:127\.)/;

function isServedToOthers({ PUBLIC_URL, TRUSTED_PROXIES }: OperatorConfig): boolean {
  if (TRUSTED_PROXIES !== undefined) return true;
  if (PUBLIC_URL === undefined) return false;
  const name = bareName(new URL(PUBLIC_URL).hostname);
  return !isLocalhost(name) && !LOOPBACK.test(name);
}

/** Null where a request of HTTP/1.0 named no host. */
function isOurName(hostname: string | null): boolean {
  const name = bareName(hostname ?? "");
  return name === "" || isLocalhost(name) || isIP(name) !== 0;
}

/** IPv6 addresses without their brackets. */
const bareName = (hostname: string): string => hostname.toLowerCase().replaceAll(/[[\]]/g, "");
const isLocalhost = (name: string): boolean => name === "localhost" || name.endsWith(".localhost");
