/**
 * How a browser gets to the operator's page. The token is typed into a form once and exchanged for a cookie that
 * - no script can read (HttpOnly), no other site's page can send (SameSite=Strict), and no address shows;
 * - holds no token: a time, and an HMAC over it and the token's hash, so that another token ends all sessions;
 * - ends by itself, and opens only what the page reads: nothing that it opens changes anything.
 * Kept in the page's memory instead, the token would be asked for at every reload, and any script of the page could take it;
 * a browser's own password box (Basic) sends it with each request, from other sites' pages too, and never lets go of it.
 */
import { createHash, createHmac, timingSafeEqual } from "node:crypto";

import type { FastifyRequest, onRequestAsyncHookHandler } from "fastify";

import { ApiError } from "#contract/errors.ts";
import { isSameSecret } from "#platform/same-secret.ts";
import type { Clock } from "#platform/clock.ts";

import type { GatewayOptions } from "../gateway-parts.ts";
import { createOperatorCheck, refuseFailed } from "./operator.ts";

const COOKIE = "dream_engine_operator";
/** A working day: whoever watches longer types the token once more. */
const SESSION_S = 8 * 3_600;

export interface DashboardSessions {
  /** A `Set-Cookie` that begins a session for this browser. */
  begin(request: FastifyRequest): string;
  /** A `Set-Cookie` that ends it. */
  end(): string;
  /** Whether the request comes with a session that holds. */
  holds(request: FastifyRequest): boolean;
}

export interface SessionParts {
  readonly config: Pick<GatewayOptions["config"], "OPERATOR_TOKEN" | "PUBLIC_URL">;
  /** Shared by all gateways: whichever answers next knows the session. */
  readonly secret: Buffer;
  readonly clock: Clock;
}

export function createDashboardSessions({ config, secret, clock }: SessionParts): DashboardSessions {
  const { OPERATOR_TOKEN: token, PUBLIC_URL } = config;
  const tokenHash = createHash("sha256")
    .update(token ?? "")
    .digest("hex");
  /** Epoch seconds. */
  const signatureOf = (expires: number): Buffer =>
    createHmac("sha256", secret).update(`dashboard session\n${tokenHash}\n${expires}`).digest();

  return {
    begin(request) {
      const expires = Math.floor(clock.now() / 1000) + SESSION_S;
      // A browser drops a Secure cookie that comes over plain HTTP, as on a laptop.
      const secure = request.protocol === "https" || PUBLIC_URL?.startsWith("https:") === true;
      const value = `${expires}.${signatureOf(expires).toString("hex")}`;
      return `${COOKIE}=${value}; Max-Age=${SESSION_S}; ${ATTRIBUTES}${secure ? "; Secure" : ""}`;
    },
    end: () => `${COOKIE}=; Max-Age=0; ${ATTRIBUTES}`,
    holds(request) {
      if (token === undefined) return false;
      for (const { expires, signature } of sessionsIn(request.headers.cookie ?? "")) {
        const expected = signatureOf(expires);
        const fits = signature.length === expected.length && timingSafeEqual(signature, expected);
        // Of a session that is not ours nothing is believed, its time neither.
        if (fits && clock.now() < expires * 1000) return true;
      }
      return false;
    },
  };
}

const ATTRIBUTES = "Path=/; HttpOnly; SameSite=Strict";
/** More of one name are somebody's attempt. */
const COOKIES_TRIED_MAX = 4;

/** There may be several of that name: a page of a neighbouring subdomain can set one, and must not shut the operator out. */
function sessionsIn(header: string): { readonly expires: number; readonly signature: Buffer }[] {
  const found = header.matchAll(new RegExp(`(?:^|; *)${COOKIE}=(\\d{1,12})\\.([0-9a-f]{64})(?=;|$)`, "g"));
  return [...found]
    .slice(0, COOKIES_TRIED_MAX)
    .map(([, expires, signature = ""]) => ({ expires: Number(expires), signature: Buffer.from(signature, "hex") }));
}

/** In front of what the page reads: a session, or what the operator's other routes ask for (plugins/operator.ts). */
export function createDashboardCheck(
  parts: Parameters<typeof createOperatorCheck>[0],
  sessions: DashboardSessions,
): onRequestAsyncHookHandler {
  const checkOperator = createOperatorCheck(parts);
  return async function checkSessionOrOperator(request, reply) {
    if (!sessions.holds(request)) await checkOperator.call(this, request, reply);
  };
}

/** What to answer to a token that somebody typed: null where it is the operator's, else the refusal. */
export async function problemOf(
  given: string,
  request: FastifyRequest,
  { config: { OPERATOR_TOKEN }, rateLimiter }: Parameters<typeof createOperatorCheck>[0],
): Promise<ApiError | null> {
  if (OPERATOR_TOKEN !== undefined && isSameSecret(given, OPERATOR_TOKEN)) return null;
  const refusal = new ApiError("missing_key", "this is not the operator's token");
  return refuseFailed(rateLimiter, request, refusal).catch((error: unknown) => {
    if (error instanceof ApiError) return error;
    throw error;
  });
}
