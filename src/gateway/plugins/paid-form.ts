/** What must hold before the form of a paid route is read: its type, its size, and a balance that can pay for something. */
import type { FastifyRequest, onRequestAsyncHookHandler } from "fastify";

import { ApiError } from "#contract/errors.ts";
import { BODY_BYTES_MAX } from "#contract/limits.ts";
import { mils } from "#contract/mils.ts";
import { accountsOf } from "#ledger/ledger.ts";
import type { Clock } from "#platform/clock.ts";
import type { Database } from "#platform/database.ts";
import { insufficientCredits } from "#rollouts/accept.ts";
import { hasUndelivered } from "#rollouts/find.ts";

import { bodyTooLarge } from "../input/multipart.ts";
import type { Models } from "../models.ts";
import { identityOf } from "./keys.ts";

/** A hook for routes that read a form. */
export function formOfAtMost(bytesMax: number): onRequestAsyncHookHandler {
  return async (request) => {
    const contentType = request.headers["content-type"] ?? "none";
    if (!/^multipart\/form-data\s*;/i.test(contentType)) {
      throw new ApiError(
        "unsupported_media_type",
        `expected Content-Type multipart/form-data with a boundary, got ${contentType.slice(0, 100)}`,
      );
    }
    if (Number(request.headers["content-length"] ?? 0) > bytesMax) throw bodyTooLarge(bytesMax);
  };
}

export const checkFormHeaders = formOfAtMost(BODY_BYTES_MAX);

/** Whether a balance can pay for the shortest rollout there is. */
export interface PayableCheck {
  /** Throws ApiError(insufficient_credits). */
  check(request: FastifyRequest): Promise<void>;
  /** A hook: the same, but for what may be a repetition under its key, which costs nothing. */
  readonly unlessRepeated: onRequestAsyncHookHandler;
}

export function createPayableCheck(db: Database, models: Models): PayableCheck {
  const framesMin = Math.min(...models.all.map(({ manifest }) => manifest.shapes.chunk_size)) + 1;
  async function check(request: FastifyRequest): Promise<void> {
    const { balance_mils, price_mils_per_frame, customer_id } = identityOf(request);
    const smallest = mils(framesMin * price_mils_per_frame);
    if (balance_mils >= smallest) return;
    const { debt_mils } = await accountsOf(db, customer_id);
    throw insufficientCredits(balance_mils, smallest, "even the shortest rollout", debt_mils);
  }
  return {
    check,
    unlessRepeated: async (request) => {
      if (request.headers["idempotency-key"] === undefined) await check(request);
    },
  };
}

/** A hook that answers 402 at once where not even the shortest rollout could be paid. */
export function createBalanceCheck(db: Database, clock: Clock, payable: PayableCheck): onRequestAsyncHookHandler {
  return async (request) => {
    // Two kinds of request cost nothing: a repetition under its key, and a paid video that did not arrive.
    if (request.headers["idempotency-key"] !== undefined) return;
    try {
      // The body, and with it what this request would cost, has not been read.
      await payable.check(request);
    } catch (error) {
      if (await hasUndelivered(db, identityOf(request).customer_id, new Date(clock.now()))) return;
      throw error;
    }
  };
}
