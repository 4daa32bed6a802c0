/** Who is asking: the key of the Authorization header, looked at before a byte of the body is read. */
import type { FastifyInstance, FastifyRequest, onRequestAsyncHookHandler } from "fastify";

import { ApiError } from "#contract/errors.ts";
import type { RandomBytes } from "#contract/ids.ts";
import { authenticate, type KeyIdentity, localKey } from "#keys/keys.ts";
import type { UsageNotes } from "#keys/usage.ts";
import type { Clock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";

import { addressBucket, type RateLimiter, tooManyRequests } from "../rate-limiter.ts";

declare module "fastify" {
  interface FastifyRequest {
    /** Set on routes that need a key, from their first hook on. */
    identity: KeyIdentity | null;
  }
}

export function identityOf(request: FastifyRequest): KeyIdentity {
  if (!request.identity) throw new Error(`${request.routeOptions.url} reads the key, but does not ask for one`);
  return request.identity;
}

export interface KeyCheckOptions {
  readonly db: Database;
  readonly auth: "on" | "off";
  readonly clock: Clock;
  readonly random: RandomBytes;
  readonly limiter: RateLimiter;
  readonly usage: UsageNotes;
}

/** Failed attempts of one address. A right key is never refused by it: behind a proxy all callers share an address. */
const FAILURES = { per_second: 2, burst: 30 };

/** A hook for routes that need a key. */
export function createKeyCheck(app: FastifyInstance, options: KeyCheckOptions): onRequestAsyncHookHandler {
  const { db, auth, clock, random, limiter, usage } = options;
  app.decorateRequest("identity", null);

  return async (request) => {
    const token = bearerToken(request.headers.authorization);
    if (token === null && auth === "off") {
      request.identity = await localKey(db, random);
      return;
    }
    try {
      request.identity = await authenticate(db, token, clock);
      usage.note(request.identity.key_id);
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) {
        const failures = await limiter.take(addressBucket("failed", request.ip), FAILURES);
        const limit = { name: "failed authentications", policy: FAILURES };
        if (!failures.allowed)
          throw tooManyRequests("failed authentications from this address", limit, failures, error);
      }
      throw error;
    }
  };
}

/** Null when there is no header. Throws ApiError(malformed_key) on another scheme. */
function bearerToken(header: string | undefined): string | null {
  if (header === undefined) return null;
  const token = /^Bearer +(\S+) *$/i.exec(header)?.[1];
  if (token === undefined) {
    const scheme = header.split(" ", 1)[0]?.slice(0, 20) ?? "";
    throw new ApiError(
      "malformed_key",
      `expected "Authorization: Bearer dre_…", got ${/^bearer$/i.test(scheme) ? "Bearer without one key" : "another scheme"}`,
    );
  }
  return token;
}
